"""check_data is told a path alone: it says which kind of data that is, and the settings that it
prints open them."""

import io
import shlex
import shutil
import tarfile

import numpy as np
from PIL import Image
import pytest
import webdataset

from beit_jax.data.recognition import kind_of
from beit_jax.data.sources.choice import open_source
from beit_jax.data.stores import tables
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from tests import tiny
from tests.class_tars import class_tars, tar
from tests.data.pairs import write_pairs
from tests.data.sources import test_parquet, test_tfrecords
from tests.tools.test_check_data import check

COUNT, CLASSES = 11, ('ant', 'bee', 'cat')


def picture(i: int, turned: bool = False) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    pixels = np.random.default_rng(i).integers(0, 256, (41 + i, 43, 3), np.uint8)
    if turned:
        exif[0x0112] = 8
    Image.fromarray(pixels).save(file, 'JPEG', exif=exif)
    return file.getvalue()


IMAGES = [picture(i, i == 4) for i in range(COUNT)]
IMAGES[7] = IMAGES[7][:99]  # damaged
LABELS = [0, 1, 2, 2, 1, 2, 0, 0, 1, 2, 2]  # 3 of ant, 3 of bee, 5 of cat


def folder(root):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS)):
        path = root / 'images' / CLASSES[label] / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root / 'images'


def folder_of_tars(root):
    return class_tars(folder(root), root / 'tars')


def tar_of_tars(root):
    return tar(root / 'train.tar', folder_of_tars(root))


def shards(root):
    (root / 'set').mkdir()
    with webdataset.ShardWriter(str(root / 'set/part-%03d.tar'), maxcount=7, verbose=0) as writer:
        for i, (image, label) in enumerate(zip(IMAGES, LABELS)):
            writer.write({'__key__': f'{i}', 'jpg': image, 'cls': label})
    (root / 'set' / 'classes.txt').write_text('\n'.join(CLASSES))
    return root / 'set'


def shard_pattern(root):
    return shards(root) / 'part-{000..001}.tar'


def parquet(root):
    return test_parquet.write(root, test_parquet.table(IMAGES, LABELS, CLASSES))


def saved(root):
    return test_parquet.saved(root / 'set', test_parquet.table(IMAGES, LABELS, CLASSES))


def saved_splits(root):
    test_parquet.saved(root / 'set' / 'train', test_parquet.table(IMAGES, LABELS, CLASSES))
    (root / 'set' / 'dataset_dict.json').write_text('{"splits": ["train"]}')
    return root / 'set'


STORED = {
    'folder': (folder,),
    'class_tars': (folder_of_tars, tar_of_tars),
    'webdataset': (shards, shard_pattern),
    'parquet': (parquet, saved, saved_splits),
}


def config_of(line: str):
    """What main.py makes of a command line that was printed."""
    python, main, chosen, _, *settings = shlex.split(line)
    assert (python, main) == ('python', 'main.py')
    recipe, _, variant = chosen.removeprefix('--config=').partition(':')
    variant = ','.join([variant, *(text.removeprefix('--config.') for text in settings)])
    return task_config(load_recipe(str(tiny.REPOSITORY / recipe), variant).to_dict())


def assert_opens(figures: dict, name: str, count: int, held_out: int = 0):
    for line in filter(None, (figures['command'], figures['finetune_command'])):
        data = config_of(line).data
        train, evaluate = open_source(data, 'train'), open_source(data, 'evaluate')
        assert (data.name, len(train), len(evaluate or ())) == (name, count, held_out)


@pytest.mark.parametrize(
    ('name', 'make'), [(name, make) for name, kinds in STORED.items() for make in kinds]
)
def test_pictures_of_classes(name, make, tmp_path, monkeypatch, capsys):
    """One of eleven is damaged, one lies on its side; six of them are looked at."""
    flags = '--data.path', make(tmp_path), '--max_bad_share', 0.5
    status, figures = check(monkeypatch, tmp_path, *flags)
    assert status == 0 and figures['examples'] == COUNT
    assert figures['classes'] == 3 and figures['empty_classes'] == []
    assert len(figures['corrupt']) == 1 and figures['exif_orientations'] == {'8': 1}
    said = capsys.readouterr().out
    assert 'exif        1 of 11 have an orientation other than 1 (8: 1)' in said
    assert_opens(figures, name, COUNT)
    status, figures = check(monkeypatch, tmp_path, *flags, '--limit', 6)
    said = capsys.readouterr().out
    if name != 'folder':
        assert figures['labelled']['min'] == {'name': 'ant', 'examples': 3}
        assert figures['labelled']['max'] == {'name': 'cat', 'examples': 5}
        assert 'labels      from 3 (ant) to 5 (cat) a class, of all 11\n' in said


def test_held_out(tmp_path, monkeypatch):
    path = class_tars(folder(tmp_path), tmp_path / 'tars')
    flags = '--data.path', path, '--data.evaluate_path', path, '--max_bad_share', 0.5
    assert_opens(check(monkeypatch, tmp_path, *flags)[1], 'class_tars', COUNT, COUNT)
    path = parquet(tmp_path / 'hub')
    test_parquet.write(tmp_path / 'hub', test_parquet.table(IMAGES[:5], LABELS[:5]), 'test')
    flags = '--data.path', path, '--data.evaluate_split', 'test', '--max_bad_share', 0.5
    status, figures = check(monkeypatch, tmp_path, *flags)
    assert status == 0 and len(figures['overlap']) == 5
    assert_opens(figures, 'parquet', COUNT, 5)


def test_rows_that_are_read_together(tmp_path, monkeypatch):
    """More groups of rows than stay in memory: the command reads each once."""
    lines = []
    for kept in (4, 3):
        monkeypatch.setattr(tables, '_KEPT', kept)
        path = parquet(tmp_path / str(kept))  # four groups, of three rows
        lines.append(check(monkeypatch, tmp_path, '--data.path', path, '--limit', 6)[1]['command'])
    assert [config_of(line).data.chunk for line in lines] == [0, 3]


def test_records(tmp_path, monkeypatch):
    path = test_tfrecords.prepare(tmp_path)[1]
    status, figures = check(monkeypatch, tmp_path, '--data.path', path)
    assert status == 0 and figures['labelled'] is None
    assert_opens(figures, 'tfds', test_tfrecords.COUNTS['train'])


@pytest.mark.parametrize(
    ('names', 'offset', 'reduced'), [(5, 0, False), (5, 1, True), (0, 1, True)]
)
def test_segmentation(names, offset, reduced, tmp_path, monkeypatch):
    path = tmp_path / 'set'
    for part in ('training', 'validation'):
        write_pairs(path, 3, part, offset=offset)
    if names:
        (path / 'classes.txt').write_text('a\nb\nc\nd\ne\n')
    status, figures = check(monkeypatch, tmp_path, '--data.path', path)
    config = config_of(figures['command'])
    assert status == 0 and config.task == 'segment'
    assert config.data.reduce_zero_label is reduced
    assert_opens(figures, 'folder', 3, 3)


def test_parts_of_a_set(tmp_path, monkeypatch):
    """train, val and test are no classes: the command names the parts."""
    path = folder(tmp_path)
    for part, classes in (('test', CLASSES[:1]), ('train', CLASSES), ('val', CLASSES[:2])):
        for name in classes:
            shutil.copytree(path / name, tmp_path / 'set' / part / name)
    flags = '--data.path', tmp_path / 'set', '--max_bad_share', 0.5
    status, figures = check(monkeypatch, tmp_path, *flags)
    assert status == 0 and len(figures['doubts']) == 1 and figures['finetune_command']
    assert_opens(figures, 'folder', COUNT, LABELS.count(0) + LABELS.count(1))


def test_what_is_not_read(tmp_path):
    """Arrays, packed tars, and a tar of a validation set: told what to do."""
    (tmp_path / 'arrays').mkdir()
    for i in range(3):
        np.save(tmp_path / 'arrays' / f'{i}.npy', np.zeros([5, 7, 12], np.uint16))
    message = r"--data.path='.*' holds 3 .npy arrays \(the first is uint16 \[5, 7, 12\]\)"
    with pytest.raises(RequestError, match=message):
        kind_of(str(tmp_path / 'arrays'), '--data.path')
    (tmp_path / 'arrays' / '0.npy').write_bytes(b'no array')
    with pytest.raises(RequestError, match=r'0.npy cannot be read'):
        kind_of(str(tmp_path / 'arrays'), '--data.path')
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz'):
        pass
    assert kind_of(str(tmp_path / 'a.tar.gz'), '--data.path') == 'class_tars'
    (tmp_path / 'a.tar').write_bytes((tmp_path / 'a.tar.gz').read_bytes())
    with pytest.raises(RequestError, match=r"--data.path='.*a.tar' cannot be read \(it is compre"):
        kind_of(str(tmp_path / 'a.tar'), '--data.path')
    assert kind_of(str(tmp_path / 'nothing'), '--data.path') == 'folder'
