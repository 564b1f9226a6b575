"""Tars of class tars and folders of them that GNU tar wrote: read as the folder of the same
pictures, in any order; damaged ones are refused."""

import concurrent.futures
import os
from pathlib import Path
import shutil
import subprocess

import fsspec
import numpy as np
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.class_tars import ClassTarsSource
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.stores import class_tars as store
from beit_jax.errors import RequestError, StorageError
from tests.class_tars import class_tars, tar
from tests.data import batches
from tests.data.files import write

CLASSES, COUNT = ('n01', 'n01-b', 'n010', 'nß'), 23


@pytest.fixture
def folder(tmp_path):
    """Pictures of four classes, some in a folder of their own, and what is no picture."""
    names = [f'{CLASSES[i % 4]}/{"y" * i}{i}.JPEG' for i in range(COUNT)]
    write(
        tmp_path / 'images', *names, 'n010/deep/a.png', 'n010/deep/b.JPG', f'n010/{"l" * 120}.jpg'
    )
    write(tmp_path / 'images', 'n010/.hidden.jpg', 'n01/.git/a.jpg', 'n01-b/notes.txt')
    (tmp_path / 'images' / 'n010' / 'link.txt').symlink_to(names[2])
    return tmp_path / 'images'


def archives(folder: Path, root: Path, *options: str) -> tuple[Path, Path]:
    """(the folder of class tars, the tar of them)."""
    tars = class_tars(folder, root / 'tars', *options)
    return tars, tar(root / 'train.tar', tars, *options)


def everything(source):
    return source.fingerprint, source.class_names, [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize('kind', ['gnu', 'pax', 'ustar', 'v7'])
def test_agrees_with_the_folder(folder, tmp_path, kind):
    if kind in ('v7', 'ustar'):
        (folder / 'n010' / ('l' * 120 + '.jpg')).unlink()  # which it cannot name
    expected = FolderSource(str(folder))
    for path in archives(folder, tmp_path, f'--format={kind}'):
        source = open_source(DataConfig(name='class_tars', path=str(path)), 'train')
        assert everything(source) == everything(expected)
        for i in np.random.default_rng(0).permutation(len(source)):
            name = expected.name(i)[len(str(folder)) + 1 :]
            assert source.name(i).endswith(f'.tar:{name}') and source.file(i) == name
            assert source.read(i) == expected.read(i) and source.label(i) == expected.label(i)
        assert source.read_many(3, 17) == [source.read(i) for i in range(3, 17)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            examples = list(pool.map(source.read, [i % 7 for i in range(500)]))
        assert examples == [source.read(i % 7) for i in range(500)]


def test_the_same_batches_as_from_the_folder(good, tmp_path):
    for path in archives(Path(good.path), tmp_path):
        source = ClassTarsSource(str(path))
        batches.assert_equal(batches.train(source, 3), batches.train(good, 3))


def test_held_out(folder, tmp_path):
    tars, whole = archives(folder, tmp_path)
    config = DataConfig(name='class_tars', path=str(whole), evaluate_path=str(tars))
    shutil.move(tars / 'n01.tar', tmp_path)
    train, held_out = open_source(config, 'train'), open_source(config, 'evaluate')
    assert held_out.class_names == train.class_names == CLASSES and held_out.label(0) == 1
    config = DataConfig(name='class_tars', path=str(whole), holdout=0.2)
    assert len(open_source(config, 'evaluate')) == 5
    config = DataConfig(name='class_tars', path=str(tars), evaluate_path=str(whole))
    with pytest.raises(RequestError, match=r"evaluate_path=.* has the class 'n01', which"):
        open_source(config, 'evaluate')


def test_tars_without_pictures(folder, tmp_path, capsys):
    (folder / 'empty').mkdir()
    write(folder, 'other/a.txt')
    tars, whole = class_tars(folder, tmp_path / 'tars'), tmp_path / 'whole.tar'
    tar(whole, tars)
    for path in (tars, whole):
        assert ClassTarsSource(str(path)).class_names == CLASSES
        assert 'no picture in 2 tars, no classes: empty, other\n' in capsys.readouterr().err
    for name in CLASSES:
        (tars / f'{name}.tar').unlink()
    with pytest.raises(RequestError, match='has 2 class tars, and in none of them a picture'):
        ClassTarsSource(str(tars))
    (tars / 'empty.tar').unlink()


def refused(path, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        ClassTarsSource(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_cut_short(folder, tmp_path):
    """At whatever byte: before the block of zeros that ends it, nothing is read."""
    tars, whole = archives(folder, tmp_path)
    content = whole.read_bytes()
    inner = (tars / 'n01-b.tar').read_bytes()
    data = content.index(inner)
    for size in (1, 511, 512, 1000, data, data + 700, len(content.rstrip(b'\0'))):
        whole.write_bytes(content[:size])
        refused(whole, r"config.data.path='.*train.tar' cannot be read")
    for size in (0, 1, 511, 512, 700, len(inner.rstrip(b'\0'))):
        (tars / 'n01-b.tar').write_bytes(inner[:size])
        refused(tars, r"config.data.path='.*n01-b.tar' cannot be read")
        refused(tar(whole, tars), r"the class tar 'n01-b.tar' in it cannot be read")


def test_damaged(folder, tmp_path):
    tars, whole = archives(folder, tmp_path)
    inner = bytearray((tars / 'n010.tar').read_bytes())
    second = inner.index(b'ustar', 300) // 512 * 512
    for place in (second, 0):
        inner[place] ^= 255
        (tars / 'n010.tar').write_bytes(inner)
        refused(tars, r"n010.tar' cannot be read \((it is cut short, or damaged|bad checksum)\)")
        refused(tar(whole, tars), r"'n010.tar' in it cannot be read \(it is cut short, or damaged")
    shutil.copy(tars / 'n01.tar', tmp_path / 'n010.tar')
    (tars / 'n010.tar').unlink()
    subprocess.run(['tar', '-rf', tars / 'n01.tar', '-C', folder / 'n01', '0.JPEG'], check=True)
    refused(tars, r"n01.tar' cannot be read \(there are 2 members '0.JPEG'\)")
    shutil.copy(tmp_path / 'n010.tar', tars / 'n01.tar')
    tar(whole, tars)
    subprocess.run(['tar', '-rf', whole, '-C', tars, 'n01.tar'], check=True)
    refused(whole, r"there are 2 members 'n01'")
    (tars / 'sparse').mkdir()
    with (tars / 'sparse' / 'a.jpg').open('wb') as file:
        file.truncate(2**16)
    tar(tars / 'sparse.tar', tars / 'sparse', '--sparse')
    refused(tars, r"'a.jpg' is stored without its zeros \(tar --sparse\)")
    tar(tars / 'sparse.tar', tars / 'sparse', '-P', '--transform=s,^,../,')
    refused(tars, r"the path '../a.jpg' leads out of it")


def test_compressed_and_others(folder, tmp_path):
    tars, whole = archives(folder, tmp_path)
    subprocess.run(['gzip', '-k', whole, tars / 'n01.tar'], check=True)
    refused(tars, r'n01.tar.gz is compressed.*gunzip all of them')
    refused(tar(whole, tars), r"'n01.tar.gz' in it is compressed")
    (tars / 'n01.tar.gz').rename(tars / 'n01.tar')
    refused(tars, r'it is compressed.*gunzip')
    refused(tar(whole, tars), r"'n01.tar' in it cannot be read \(it is compressed")
    (tmp_path / 'train.tar.gz').rename(whole)
    refused(whole, r'it is compressed.*gunzip')
    refused(
        tar(whole, folder / 'n010'),
        r'it holds \d+ files and no class tar: unpack it; .*tools.prepare',
    )
    refused(tmp_path / 'nothing', 'does not exist')
    refused(folder, 'holds no .tar file')
    refused('', 'config.data.path is empty')


def test_parts_of_a_set(folder, tmp_path):
    """They are no classes; what is said to do can be done."""
    tars, parts = class_tars(folder, tmp_path / 'tars'), tmp_path / 'parts'
    parts.mkdir()
    for name in ('Train', 'test'):
        tar(parts / f'{name}.tar', tars)
    refused(parts, r'holds Train.tar, test.tar, parts of a set, no classes: set it to ')
    assert ClassTarsSource(str(parts / 'Train.tar')).class_names == CLASSES
    tar(parts / 'n03.tar', folder / 'n010')
    assert 'n03' in ClassTarsSource(str(parts)).class_names


def test_a_tar_cut_later_leaves_the_others(folder, tmp_path):
    tars, _ = archives(folder, tmp_path)
    source = ClassTarsSource(str(tars))
    good = [source.read(i) for i in range(len(source))]
    first = source.class_names.index('n01-b')
    last = next(i for i in reversed(range(len(source))) if source.label(i) == first)
    os.truncate(tars / 'n01-b.tar', 512)
    many = source.read_many(0, len(source))
    bad = [i for i, each in enumerate(many) if isinstance(each, OSError)]
    assert bad == [i for i in range(len(source)) if source.label(i) == first]
    assert [each for i, each in enumerate(many) if i not in bad] == [
        each for i, each in enumerate(good) if i not in bad
    ]
    with pytest.raises(OSError, match=r'n01-b.tar:n01-b/.* is cut short'):
        source.read(last)


def test_storage_that_fails(folder, tmp_path, monkeypatch):
    tars, _ = archives(folder, tmp_path)

    def fails(*_):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(store, 'members', fails)
    with pytest.raises(StorageError, match=r"n\w+.*.tar' cannot be read"):
        ClassTarsSource(str(tars))


def test_the_list_is_kept_until_a_tar_changes(folder, tmp_path, monkeypatch):
    paths, index = archives(folder, tmp_path), str(tmp_path / 'index')
    looked, pictures = [], store.pictures
    monkeypatch.setattr(store, 'pictures', lambda *of: looked.append(of) or pictures(*of))
    for path in map(str, paths):
        looked.clear()
        made, opened = ClassTarsSource(path, index=index), ClassTarsSource(path, index=index)
        assert len(looked) == 4 and everything(made) == everything(opened)
        changed = Path(path, 'n01.tar') if os.path.isdir(path) else Path(path)
        facts = changed.stat()
        os.utime(changed, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        assert everything(ClassTarsSource(path, index=index)) == everything(made)
        assert len(looked) == 8


def test_another_store(folder, tmp_path):
    tars, whole = archives(folder, tmp_path)
    remote = fsspec.filesystem('memory')
    remote.put(str(tars), '/there/tars', recursive=True)
    remote.put(str(whole), '/there/train.tar')
    here = everything(FolderSource(str(folder)))
    for name in ('tars', 'train.tar'):
        assert everything(ClassTarsSource(f'memory://there/{name}')) == here
    remote.rm('/there', recursive=True)
