"""Files on disk and in other stores are the same to who lists and reads them."""

import hashlib
import importlib.util
import os
import socket

import fsspec
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.stores import storage
from beit_jax.errors import RequestError

FILES = {
    'a/x.png': b'0123456789',
    'a/Y.JPG': b'',
    'a/.hidden.png': b'0',
    '.git/no.png': b'0',
    'a/notes.txt': b'123',
    'b/a/z.jpeg': b'45',
}


@pytest.fixture(params=['local', 'memory'])
def root(request, tmp_path):
    """The same files on disk and in another store."""
    system, path = fsspec.filesystem('file'), str(tmp_path)
    if request.param == 'memory':
        system, path = fsspec.filesystem('memory'), f'memory://{tmp_path.name}'
    for name, content in FILES.items():
        system.makedirs(os.path.dirname(f'{path}/{name}'), exist_ok=True)
        system.pipe_file(f'{path}/{name}', content)
    yield path
    system.rm(path, recursive=True)


def test_the_same_of_every_store(root):
    images, a = ('.jpg', '.jpeg', '.png'), storage.join(root, 'a')
    assert storage.list_folder(root, images) == (['a', 'b'], [])
    assert storage.list_folder(root + '/', images) == (['a', 'b'], [])
    assert storage.list_folder(a, images) == ([], [('Y.JPG', 0), ('x.png', 10)])
    assert storage.list_folder(a) == ([], [('Y.JPG', 0), ('notes.txt', 3), ('x.png', 10)])
    kinds = [storage.kind(storage.join(root, name)) for name in ('', 'b', 'a/x.png', 'a/z')]
    assert kinds == ['folder', 'folder', 'file', '']
    path = storage.join(root, 'a/x.png')
    assert storage.read(path) == b'0123456789'
    with storage.ranges(path) as read:
        assert (read(3, 4), read(7, 100), read(0, 1)) == (b'3456', b'789', b'0')
    for wrong in (lambda: storage.read(path + 'x'), lambda: storage.list_folder(root + '/c')):
        with pytest.raises(OSError):
            wrong()


def test_a_folder_of_images(root):
    source = FolderSource(root)
    names = [source.name(i) for i in range(len(source))]
    assert names == [f'{root}/{name}' for name in ('a/Y.JPG', 'a/x.png', 'b/a/z.jpeg')]
    assert source.class_names == ('a', 'b') and source.read(2) == (b'45', 1)
    listed = b'a/Y.JPG\t0\na/x.png\t10\nb/a/z.jpeg\t2\n'
    assert source.fingerprint == hashlib.sha256(listed).hexdigest()


def test_links(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real' / 'a.jpg').write_bytes(b'12')
    for name, target in (
        ('linked', 'real'),
        ('b.jpg', 'real/a.jpg'),
        ('c.jpg', 'nothing'),
        ('d.jpg', 'd.jpg'),
    ):
        (tmp_path / name).symlink_to(target)
    assert storage.list_folder(str(tmp_path), ('.jpg',)) == (
        ['linked', 'real'],
        [('b.jpg', 2), ('c.jpg', -1), ('d.jpg', -1)],
    )
    assert len(FolderSource(str(tmp_path))) == 5


@pytest.mark.skipif(importlib.util.find_spec('gcsfs') is not None, reason='it is installed')
def test_a_missing_package():
    words = r"'gs://bucket/images' cannot be opened: pip install gcsfs"
    with pytest.raises(RequestError, match=words):
        open_source(DataConfig(path='gs://bucket/images'), 'train')
    with pytest.raises(RequestError, match=r'pip install gcsfs'):
        open_source(DataConfig(name='tfds', path='gs://bucket/set/1.0.0'), 'train')


@pytest.mark.parametrize('name', ['folder', 'tfds'])
@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('nosuch://x', 'Protocol not known: nosuch'),
        ('memory://nothing', 'does not exist|holds no dataset_info'),
    ],
)
def test_bad_paths(name, path, words):
    with pytest.raises(RequestError, match=words) as error:
        open_source(DataConfig(name=name, path=path), 'train')
    assert path in str(error.value)


def test_what_a_store_raises_is_an_error_of_reading(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('403 Forbidden')

    for method in ('info', 'cat_file', 'ls'):
        monkeypatch.setattr(fsspec.filesystem('memory').__class__, method, fail)
    with pytest.raises(OSError, match=r"403 Forbidden: 'memory://x/a.jpg'"):
        storage.read('memory://x/a.jpg')
    words = r"config.data.path='memory://x' cannot be read .*403 Forbidden"
    with pytest.raises(RequestError, match=words):
        FolderSource('memory://x')


def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    """A pipe would wait for ever, a device never end; each is an error of its own, at once."""
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind('socket.jpg')
        source = FolderSource(str(tmp_path))
        assert len(source) == 3  # listed, and so counted as bad records
        for example in source.read_many(0, 3):
            assert isinstance(example, OSError) and example.strerror
        for name in ('pipe.jpg', 'zero.jpg'):
            with pytest.raises(OSError, match='a pipe or device, no regular file'):
                storage.read(name)
            with (
                pytest.raises(OSError, match='a pipe or device, no regular file'),
                storage.ranges(name),
            ):
                pass
