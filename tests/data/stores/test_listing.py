"""Lists that are kept: what a folder holds is read once, and from the list as it was."""

import concurrent.futures
import os
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import pytest

from beit_jax.data.config import ENDINGS, DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.stores import listing, manifest, storage
from beit_jax.errors import RequestError

FOLDERS, FILES = 7, 11

LIST = f'images {" ".join(ENDINGS)}'


@pytest.fixture
def path(tmp_path):
    for i in range(FOLDERS):
        folder = tmp_path / 'set' / f'n{i}'
        (folder / 'deep').mkdir(parents=True)
        for j in range(FILES):
            (folder / ('deep' if j % 3 else '') / f'{"é" * j}{j}.jpg').write_bytes(b'x' * j)
    return str(tmp_path / 'set')


@pytest.fixture
def index(tmp_path):
    return str(tmp_path / 'made' / 'index')


@pytest.fixture
def listed(monkeypatch):
    """The folders that are listed from now on."""
    folders, list_folder = [], storage.list_folder

    def noted(folder, *rest):
        folders.append(folder)
        return list_folder(folder, *rest)

    monkeypatch.setattr(storage, 'list_folder', noted)
    return folders


def everything(source):
    examples = [(source.name(i), source.label(i)) for i in range(len(source))]
    return source.class_names, source.fingerprint, examples


def the_list(index):
    (file,) = Path(index).iterdir()  # and nothing else is left beside it
    return file


def test_listed_made_and_opened_are_the_same(path, index, listed):
    plain = everything(FolderSource(path))
    by_folder = lambda file: (str(file.parent.relative_to(path)), file.name)
    files = sorted(Path(path).rglob('*.jpg'), key=by_folder)
    labels = [int(file.relative_to(path).parts[0][1:]) for file in files]
    assert plain[2] == list(zip(map(str, files), labels))
    assert len(listed) == 1 + 2 * FOLDERS
    assert everything(FolderSource(path, index=index)) == plain and len(listed) == 2 + 4 * FOLDERS
    assert everything(FolderSource(path, index=index)) == plain and len(listed) == 2 + 4 * FOLDERS
    config = DataConfig(path=path, index=index, holdout=0.2)
    train, held_out = open_source(config, 'train'), open_source(config, 'evaluate')
    assert len(train) + len(held_out) == FOLDERS * FILES and len(listed) == 2 + 4 * FOLDERS
    assert the_list(index).name.startswith('set-')


def test_names_that_are_not_unicode(tmp_path, index):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / os.fsdecode(b'caf\xe9.jpg')).write_bytes(b'12')
    for _ in range(2):
        assert FolderSource(str(tmp_path / 'set'), index=index).read(0) == (b'12', 0)


def test_links_to_parents_are_not_entered(path, tmp_path, capsys):
    """To itself, up and out, and round through two folders; other links are followed."""
    fingerprint = FolderSource(path).fingerprint
    links = {'n0/loop': '.', 'up': '..', 'n1/deep/top': path, 'n2/self': 'self'}
    for name, target in links.items():
        Path(path, name).symlink_to(target)
    source = FolderSource(path)
    assert len(source) == FOLDERS * FILES and source.fingerprint == fingerprint
    said = capsys.readouterr().err.splitlines()
    looped = ('n0/loop', 'n1/deep/top', 'up')
    words = 'leads to a folder that it lies in: left out'
    assert sorted(said) == [f'{path}/{name} {words}' for name in looped]
    Path(path, 'n3/four').symlink_to('../n4')
    Path(path, 'n4/three').symlink_to('../n3')
    once_more = 2 * FILES  # n3/four is n4, n4/three is n3, and there it ends
    assert len(FolderSource(path)) == FOLDERS * FILES + once_more
    (tmp_path / 'link').symlink_to(path)
    assert len(FolderSource(str(tmp_path / 'link'))) == FOLDERS * FILES + once_more


def test_one_folder_for_the_lists_of_several_sets(path, index, listed):
    few = str(Path(path) / 'n3')
    config = DataConfig(path=path, evaluate_path=path, index=index)
    assert open_source(config, 'evaluate').fingerprint == open_source(config, 'train').fingerprint
    assert len(FolderSource(few, index=index)) == FILES and len(list(Path(index).iterdir())) == 2
    listed.clear()
    assert len(FolderSource(path, index=index)) == FOLDERS * FILES
    assert len(FolderSource(few + '/', index=index)) == FILES and not listed


KILLED = """
import os, signal, sys
from beit_jax.data.stores import manifest, storage
from beit_jax.data.stores.listing import Listing
list_folder, manifest.WORKERS = storage.list_folder, 1
def dies(folder, *rest):
    if folder.endswith('n2'):
        os.kill(os.getpid(), signal.SIGKILL)
    return list_folder(folder, *rest)
storage.list_folder = dies
Listing(sys.argv[1], 'key', sys.argv[2])
"""


def test_killed_and_started_again_it_goes_on(path, index, listed):
    killed = subprocess.run([sys.executable, '-c', KILLED, path, index], check=False)
    spool = the_list(index)
    done = {
        storage.join(path, manifest._content(line)[0])
        for line in spool.read_bytes().splitlines(keepends=True)
    }
    assert killed.returncode == -9 and spool.suffix == '.part' and len(done) > 3
    made = everything(FolderSource(path, index=index))
    assert not done & set(listed) and len(done) + len(listed) == 1 + 2 * FOLDERS
    assert made == everything(FolderSource(path)) and the_list(index).suffix == '.list'


@pytest.mark.parametrize(
    'half',
    [b'["n0/deep", [], 8, [["1.j', b'["n0/deep", [], 0, []]', bytes(300) + b'\n'],
    ids=['half', 'no end', 'zeros'],
)
def test_half_a_line_does_not_count(path, index, half, listed, monkeypatch):
    spool = manifest.list_path(index, {'list': LIST, 'path': path}).with_suffix('.part')
    spool.parent.mkdir(parents=True)
    whole = (['', [f'n{i}' for i in range(FOLDERS)], 0, []], ['n0', ['n0/deep'], 0, []])
    spool.write_bytes(b''.join(map(manifest._line, whole)) + half)
    for file in Path(path, 'n0').glob('*.jpg'):  # as the spool says
        file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(listing, 'pack', lambda found: sys.exit([task for task, _ in found]))
        with pytest.raises(SystemExit):
            FolderSource(path, index=index)
    assert len(listed) == 2 * FOLDERS - 1
    assert (
        len([manifest._content(line) for line in spool.read_bytes().splitlines(keepends=True)])
        == 1 + 2 * FOLDERS
    )
    assert everything(FolderSource(path, index=index)) == everything(FolderSource(path))


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[:-8],
        lambda data: data + bytes(8),
        lambda data: data[:20],
        lambda data: b'',
        lambda data: b'[]\n' + data,
        lambda data: data.replace(b'list 2', b'list 0', 1),
        lambda data: data.replace(b'"fingerprint": "', b'"fingerprint": "f', 1),
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ],
)
def test_a_damaged_list_is_refused(path, index, damage):
    FolderSource(path, index=index)
    file = the_list(index)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RequestError) as error:
        FolderSource(path, index=index)
    assert str(file) in str(error.value) and 'Remove it' in str(error.value)
    file.unlink()
    assert len(FolderSource(path, index=index)) == FOLDERS * FILES


def test_the_list_of_another_folder_is_refused(path, index):
    FolderSource(path, index=index)
    other = str(Path(path) / 'n1')
    the_list(index).rename(manifest.list_path(index, {'list': LIST, 'path': other}))
    words = rf"is a list of .*'path': '{path}'.*, not of .*'path': '{other}'"
    with pytest.raises(RequestError, match=words):
        FolderSource(other, index=index)


def test_bad_folders(path, index, tmp_path, listed):
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(RequestError, match=r"config.data.index='.*/file' cannot be written"):
        FolderSource(path, index=str(tmp_path / 'file'))
    (tmp_path / 'bare').mkdir()
    for _ in range(2):
        with pytest.raises(RequestError, match=r'holds no image'):
            FolderSource(str(tmp_path / 'bare'), index=index)
    (tmp_path / 'bare' / 'a.jpg').write_bytes(b'')  # a list of nothing was not kept
    assert len(FolderSource(str(tmp_path / 'bare'), index=index)) == 1


def test_a_folder_that_cannot_be_listed(path, monkeypatch):
    list_folder = storage.list_folder

    def fails(folder, *rest):
        if folder.endswith('n5'):
            raise PermissionError(13, 'Permission denied', folder)
        return list_folder(folder, *rest)

    monkeypatch.setattr(storage, 'list_folder', fails)
    words = rf"config.data.path='{path}': cannot list '{path}/n5' \(Permission denied\)"
    with pytest.raises(RequestError, match=words):
        FolderSource(path)


def test_of_several_processes_one_makes_the_list(path, index, listed, monkeypatch, capsys):
    list_folder = storage.list_folder
    monkeypatch.setattr(
        storage, 'list_folder', lambda *args: time.sleep(0.02) or list_folder(*args)
    )
    packed, pack = [], listing.pack
    monkeypatch.setattr(listing, 'pack', lambda found: packed.append(1) or pack(found))
    # a lock is of an open file: between threads it is as between processes
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: everything(FolderSource(path, index=index)), range(3)))
    assert made[0] == made[1] == made[2] and len(listed) == 1 + 2 * FOLDERS and len(packed) == 1
    assert capsys.readouterr().err.count('waiting for another process') == 2
    assert the_list(index).suffix == '.list'


def test_what_is_said_of_a_slow_folder(path, index, monkeypatch, capsys):
    FolderSource(path)
    assert not capsys.readouterr().err
    monkeypatch.setattr(manifest, 'SLOW', 0.0)
    FolderSource(path)
    said = capsys.readouterr().err
    assert '--config.data.index=DIR' in said and f'listing {path}: 77 examples so far' in said
    FolderSource(path, index=index)
    assert 'index=DIR' not in capsys.readouterr().err


def test_memory(monkeypatch):
    """Half a gigabyte for 14 million names, of which a list that is opened holds only what is used:
    here a thousandth of them."""
    names = [f'n{i % 10:08}_{i}.JPEG' for i in range(14_000)]
    facts, arrays = listing.pack(iter([('n01440764', [sorted(names), [110_000] * len(names)])]))
    assert sum(array.nbytes for array in arrays.values()) < 500e6 / 1000
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert len(facts['fingerprint']) == 64
