"""ImageNet's archives, made by GNU tar and SciPy in their very layout, unpacked: the same pictures
and classes in each layout, killed and started again, on a full disk, over what is there."""

import hashlib
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.io

from beit_jax.data import preparing
from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.class_tars import ClassTarsSource
from beit_jax.data.sources.labelled import Labelled, read_labels
from beit_jax.errors import RequestError, StorageError
from beit_jax.tools import arguments, prepare
from tests.class_tars import class_tars, tar
from tests.data.files import write
from tests.train.conftest import small_disk  # noqa: F401 - a fixture

CLASSES, HELD_OUT = ('n01440764', 'n01443537', 'n01484850'), 11


@pytest.fixture
def root(tmp_path):
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, the development kit and Kaggle's table;
    `train` and `val` are what is to be made of them."""
    names = [f'{CLASSES[i % 3]}/{CLASSES[i % 3]}_{7 * i}.JPEG' for i in range(23)]
    write(tmp_path / 'train', *names)
    tars = class_tars(tmp_path / 'train', tmp_path / 'tars')
    tar(tmp_path / 'ILSVRC2012_img_train.tar', tars)
    labels = [2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 0]
    pictures = [f'ILSVRC2012_val_{i:08}.JPEG' for i in range(1, HELD_OUT + 1)]
    write(tmp_path / 'flat', *pictures)
    tar(tmp_path / 'ILSVRC2012_img_val.tar', tmp_path / 'flat')
    for name, label in zip(pictures, labels):
        (tmp_path / 'val' / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / 'flat' / name, tmp_path / 'val' / CLASSES[label])
    write_kit(tmp_path, labels)
    rows = [f'{name[:-5]},{CLASSES[k]} 85 1 499 272 ' for name, k in zip(pictures, labels)]
    (tmp_path / 'LOC_val_solution.csv').write_text('\n'.join(['ImageId,PredictionString', *rows]))
    return tmp_path


def write_kit(root, labels):
    """The numbers of the classes are not in the order of their names; a fourth one stands above."""
    kit = root / 'ILSVRC2012_devkit_t12'
    (kit / 'data').mkdir(parents=True, exist_ok=True)
    numbers = [3, 1, 2]
    fields = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'O')]
    rows = [(numbers[i], CLASSES[i], 'fish, a', 0) for i in range(3)] + [(4, 'n00001740', 'it', 3)]
    meta = {'synsets': np.array(rows, fields)[:, None]}
    scipy.io.savemat(kit / 'data' / 'meta.mat', meta)
    truth = ''.join(f'{numbers[label]}\n' for label in labels)
    (kit / 'data' / 'ILSVRC2012_validation_ground_truth.txt').write_text(truth)
    command = ['tar', '-czf', f'{kit}.tar.gz', '-C', root, kit.name]
    subprocess.run(command, check=True)


def call(monkeypatch, root, *words, labels='ILSVRC2012_devkit_t12.tar.gz') -> int:
    flags = ['--train', root / 'ILSVRC2012_img_train.tar', '--val', root / 'ILSVRC2012_img_val.tar']
    flags += ['--labels', root / labels, '--output', root / 'out', *words]
    monkeypatch.setattr(sys, 'argv', ['prepare', *map(str, flags)])
    try:
        arguments.main(prepare.run, prepare._arguments())
    except SystemExit as ended:
        return ended.code
    return 0


def opened(printed: str):
    """(train, held out) by the settings that were printed."""
    settings = dict(re.findall(r'--config\.data\.(\w+)=(\S+)', printed))
    return [open_source(DataConfig(**settings), split) for split in ('train', 'evaluate')]


def examples(source):
    return source.class_names, [source.read(i) for i in range(len(source))]


def files(folder: Path) -> dict:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*') if f.is_file()}


@pytest.mark.parametrize('layout', preparing.LAYOUTS)
@pytest.mark.parametrize('labels', ['ILSVRC2012_devkit_t12.tar.gz', 'LOC_val_solution.csv'])
def test_layouts(root, monkeypatch, capsys, layout, labels):
    """Each is read as the folders are; `sha256sum` agrees; and nothing is written twice."""
    words = ['--layout', layout, '--samples', 7, '--ordered']
    if labels.endswith('.csv'):  # Kaggle's archive holds the pictures as files
        with tarfile.open(root / 'ILSVRC2012_img_val.tar') as held_out:
            held_out.extractall(root / 'CLS-LOC', filter='data')
        words += ['--val', root / 'CLS-LOC']
    assert call(monkeypatch, root, *words, labels=labels) == 0
    parts = opened(capsys.readouterr().out)
    for source, name in zip(parts, ('train', 'val')):
        folder = open_source(DataConfig(path=str(root / name)), 'train')
        assert examples(source) == examples(folder)
        if layout != 'webdataset':
            assert source.fingerprint == folder.fingerprint
    if layout == 'folder':
        assert files(root / 'out' / 'train') == files(root / 'train')
        assert files(root / 'out' / 'validation') == files(root / 'val')
    else:
        base = root / 'out' / ('train' if layout == 'class_tars' else '')
        subprocess.run(
            ['sha256sum', '-c', '--strict', root / 'out' / 'train.sha256'], cwd=base, check=True
        )
    before = files(root / 'out')
    monkeypatch.setattr(preparing, '_write', None)
    assert call(monkeypatch, root, *words, labels=labels) == 0
    said = capsys.readouterr().out
    assert re.search(r'train: 23 pictures of 3 classes in .*: (\d) \w+, of which \1 were', said)
    assert files(root / 'out') == before


def test_shards_are_in_random_order(root, monkeypatch, capsys):
    assert call(monkeypatch, root, '--layout', 'webdataset') == 0
    source = opened(capsys.readouterr().out)[0]
    folder = open_source(DataConfig(path=str(root / 'train')), 'train')
    assert examples(source) != examples(folder)
    assert sorted(examples(source)[1]) == sorted(examples(folder)[1])


KILLED = """
import os, signal, sys
from beit_jax.data import preparing
from beit_jax.tools import arguments, prepare
write, left = preparing._write, [3]
def dies(source, path, *rest):
    write(source, path, *rest)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
preparing._write = dies
arguments.main(prepare.run, prepare._arguments())
"""


@pytest.mark.parametrize('layout', preparing.LAYOUTS)
def test_killed_and_started_again_it_goes_on(root, layout, monkeypatch, capsys):
    words = ['--train', root / 'ILSVRC2012_img_train.tar', '--output', root / 'out']
    words += ['--layout', layout, '--samples', '5']
    killed = subprocess.run([sys.executable, '-c', KILLED, *words], check=False)
    assert killed.returncode == -9
    data = DataConfig(name=layout, path=str(root / 'out' / ('train' * (layout != 'webdataset'))))
    with pytest.raises(RequestError, match=r'does not exist|3 of 5 shards are missing'):
        open_source(data, 'train')
    with (root / 'out' / 'train.sha256').open('a') as file:
        file.write('0123')  # as of a line that a full disk has cut
    written, write = [], preparing._write
    monkeypatch.setattr(preparing, '_write', lambda *of: written.append(of[1]) or write(*of))
    assert call(monkeypatch, root, *words[4:]) == 0
    units = 5 if layout == 'webdataset' else 3
    held_out = 3
    assert len(written) == units - 2 + held_out and ', of which 2 were' in capsys.readouterr().out
    train, _ = open_source(data, 'train'), capsys.readouterr()
    folder = open_source(DataConfig(path=str(root / 'train')), 'train')
    assert sorted(examples(train)[1]) == sorted(examples(folder)[1])
    assert not list((root / 'out').rglob('*.part'))


def test_a_full_disk(root, small_disk, monkeypatch, capsys):  # noqa: F811
    """Status 74; with more room the same command goes on."""
    for name in CLASSES:
        (root / 'train' / name / 'large.JPEG').write_bytes(os.urandom(3 << 19))
    tar(root / 'ILSVRC2012_img_train.tar', class_tars(root / 'train', root / 'tars'))
    (root / 'out').symlink_to(small_disk)
    assert call(monkeypatch, root) == 74
    error = capsys.readouterr().err
    assert 'No space left on device' in error and 'goes on where it ended' in error
    assert len(error.splitlines()) == 1
    subprocess.run(['mount', '-o', 'remount,size=9m', small_disk], check=True)
    assert call(monkeypatch, root) == 0
    assert ', of which 2 were' in capsys.readouterr().out
    assert files(root / 'out' / 'train') == files(root / 'train')


def test_nothing_is_written_over(root, monkeypatch, capsys):
    for layout in preparing.LAYOUTS:
        out = root / 'out'
        words = '--layout', layout, '--samples', 5
        shutil.rmtree(out, ignore_errors=True)
        mine = out / {'webdataset': 'train-000003.tar'}.get(layout, 'train/mine')
        mine.parent.mkdir(parents=True)
        mine.write_text('mine')
        assert call(monkeypatch, root, *words) == 2 and mine.read_text() == 'mine'
        assert 'is there already' in capsys.readouterr().err
        shutil.rmtree(out)
        assert call(monkeypatch, root, *words) == 0
        other = 'class_tars' if layout == 'folder' else 'folder'
        assert call(monkeypatch, root, '--layout', other) == 2
        assert 'of other pictures, or of another --layout' in capsys.readouterr().err
        victim = next(path for path in sorted(out.rglob('*')) if path.suffix in ('.JPEG', '.tar'))
        victim.write_bytes(b'changed')
        assert call(monkeypatch, root, *words) == 2
        unit = victim.parent if layout == 'folder' else victim
        assert f'{unit} is not what was written' in capsys.readouterr().err
        shutil.rmtree(unit) if unit.is_dir() else unit.unlink()
        assert call(monkeypatch, root, *words) == 0


def test_bad_requests(root, monkeypatch, capsys):
    for words, message in (
        (['--layout', 'zip'], 'Allowed: folder, webdataset, class_tars'),
        (['--samples', '0'], '--samples is 0'),
        (['--train', root / 'nothing.tar'], 'does not exist'),
        (['--val', root / 'nothing'], 'does not exist'),
        (['--val', root / 'train'], 'lacks 11 of the 11 pictures that have labels'),
        (['--labels', root / 'ILSVRC2012_img_val.tar'], 'there are 0 files data/meta.mat'),
        (['--labels', root / 'nothing.csv'], 'No such file'),
    ):
        assert call(monkeypatch, root, *words) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (root / 'out').exists()


def test_labels_that_do_not_fit(root):
    path = str(root / 'ILSVRC2012_img_val.tar')
    labels = read_labels(str(root / 'LOC_val_solution.csv'), '--labels')
    assert labels == read_labels(str(root / 'ILSVRC2012_devkit_t12.tar.gz'), '--labels')
    one, *others = labels
    more, fewer = labels | {'zebra': CLASSES[0]}, {name: labels[name] for name in others}
    for given, names, message in (
        (more, None, "lacks 1 of the 12 pictures that have labels, the first is 'zebra'"),
        (fewer, None, f"of '{one}.JPEG' no class is known"),
        (labels, CLASSES[:2], "has the class 'n01484850', which the training images do not"),
    ):
        with pytest.raises(RequestError, match=message):
            Labelled(path, given, names, '--val')
    table, kit = root / 'LOC_val_solution.csv', root / 'ILSVRC2012_devkit_t12.tar.gz'
    table.write_text('ImageId,PredictionString\nILSVRC2012_val_00000001,\n')
    whole = kit.read_bytes()
    kit.write_bytes(whole[: len(whole) // 2])
    for damaged in (table, kit):
        with pytest.raises(RequestError, match=r'--labels=.* cannot be read .*: give ILSVRC2012'):
            read_labels(str(damaged), '--labels')


def test_an_archive_that_fails(root, monkeypatch):
    source = ClassTarsSource(str(root / 'ILSVRC2012_img_train.tar'))
    for number, kind in (5, StorageError), (2, RequestError):

        def fails(index):
            raise OSError(number, os.strerror(number), 'train.tar')

        monkeypatch.setattr(source, 'read', fails)
        with pytest.raises(kind, match=r'train.tar.*the same command goes on'):
            preparing.prepare(source, root / 'out', 'train', 'folder', 5, False)


def test_checksums(root):
    file = root / 'train' / CLASSES[0] / f'{CLASSES[0]}_0.JPEG'
    assert preparing.checksum(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    command = f'cd {file.parent} && sha256sum * | sha256sum'
    expected = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    assert preparing.checksum(file.parent) == expected.stdout.split()[0]
