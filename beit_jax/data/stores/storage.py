"""Files by their path: local ones through os, all others ('gs://bucket/folder') through fsspec.
What cannot be read is an OSError."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import os
from pathlib import PurePath
import posixpath
import stat
from typing import BinaryIO

from beit_jax.remote import file_system, is_remote

_BLOCK = 2**24  # bytes of another store that are read in one go where all are read
_CHANGED = ('etag', 'ETag', 'LastModified', 'updated', 'mtime', 'last_modified', 'created')


def join(*parts: str) -> str:
    """One path of several; empty parts count for nothing."""
    return posixpath.join(*filter(None, parts))


def kind(path: str) -> str:
    """'folder', 'file', or '' where there is nothing."""
    if not is_remote(path):
        return 'folder' if os.path.isdir(path) else 'file' if os.path.exists(path) else ''
    try:
        return 'folder' if _remote(path, 'info')['type'] == 'directory' else 'file'
    except FileNotFoundError:
        return ''


def list_folder(
    folder: str, endings: tuple[str, ...] = ('',)
) -> tuple[list[str], list[tuple[str, int]]]:
    """([name of each folder], [(name, size in bytes) of each file]), sorted, hidden ones left out.

    Files are those whose name, in lower case, has one of the `endings`. Links are followed; -1 is
    the size of a broken one.
    """
    folders, files = (_list_remote if is_remote(folder) else _list_local)(folder, endings)
    return sorted(folders), sorted(files)


def read(path: str) -> bytes:
    """All of a file."""
    if is_remote(path):
        return _remote(path, 'cat_file')
    with open(path, 'rb', opener=_open_regular) as file:
        return file.read()


def opened(path: str) -> BinaryIO:
    """A file to read from front to back, with leaps; of another store in large blocks."""
    if is_remote(path):
        return _remote(path, 'open', mode='rb', block_size=_BLOCK)
    return open(path, 'rb')


def stamps(folder: str, endings: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """{name: (size in bytes, a text that is another when the file has changed)} of the files of a
    folder, sorted, as `list_folder` finds them."""
    names = [name for name, _ in list_folder(folder, endings)[1]]
    if not is_remote(folder):
        facts = {name: os.stat(join(folder, name)) for name in names}
        return {name: (each.st_size, str(each.st_mtime_ns)) for name, each in facts.items()}
    entries = {
        entry['name'].rpartition('/')[2]: entry for entry in _remote(folder, 'ls', detail=True)
    }
    return {
        name: (
            entries[name]['size'],
            # what S3, Google and others call it
            ' '.join(str(entries[name][key]) for key in _CHANGED if key in entries[name]),
        )
        for name in names
    }


@contextlib.contextmanager
def ranges(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """A function (start, length) -> these bytes of a file, fewer at its end."""
    if is_remote(path):
        yield lambda start, length: _remote(path, 'cat_file', start=start, end=start + length)
        return
    file = _open_regular(path, os.O_RDONLY)
    try:
        yield lambda start, length: os.pread(file, length, start)
    finally:
        os.close(file)


def leads_back(root: str, folder: str) -> bool:
    """Whether the folder `folder` below a local `root` (without links) is one of those that it lies
    in, as by a link to a parent: whoever enters it lists for ever."""
    path = PurePath(root, folder)
    own, *above = map(os.stat, (path, *path.parents))
    return any(os.path.samestat(own, other) for other in above)


def _open_regular(path, flags):
    """os.open, of a regular file only: a pipe would wait for ever, a device may never end."""
    file = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, 'a pipe or device, no regular file', path)
    return file


def _list_local(folder, endings):
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, size = entry.name, -1
            if name.startswith('.'):
                continue
            wanted = name.lower().endswith(endings)
            try:
                if entry.is_dir():
                    folders.append(name)
                    continue
                if wanted:
                    size = entry.stat().st_size
            except OSError:  # a link that leads nowhere, or in a circle
                pass
            if wanted:
                files.append((name, size))
    return folders, files


def _list_remote(folder, endings):
    folders, files = [], []
    for entry in _remote(folder, 'ls', detail=True):
        path = entry['name'].rstrip('/')
        name = path.rpartition('/')[2]
        # stores without folders list an empty file in the folder's place
        if name.startswith('.') or folder.rstrip('/').endswith(path):
            continue
        if entry['type'] == 'directory':
            folders.append(name)
        elif name.lower().endswith(endings):
            files.append((name, -1 if entry['size'] is None else entry['size']))
    return folders, files


def _remote(path, method, **arguments):
    """What `method` of the path's file system says of it."""
    with file_system(path) as (system, own_path):
        return getattr(system, method)(own_path, **arguments)
