"""Tars of pictures, one a class, in a folder or in one outer tar, as ImageNet is downloaded. Where
each picture lies is read once from the headers, so that they come in any order."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import os
import posixpath
import tarfile
import typing

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.stores import listing, manifest, storage
from beit_jax.data.stores.shards import Shards
from beit_jax.data.stores.tars import COMPRESSED, check_whole
from beit_jax.errors import check, of_storage, shown

PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
_TAR = '.tar'


class Member(typing.NamedTuple):
    """A file in a tar: its path there, and where it lies, in bytes."""

    name: str
    length: int
    offset: int


class Placed(Shards):
    """Pictures in tars, sorted by class, then by name, as the files of a folder are.

    `arrays`: as `listing.pack` has them, with `offsets` and `lengths`, int64 [N]; `files`: the tar
    of each class.

    Attributes:
      names: CLASS/NAME of each picture.
      classes: those that have pictures, sorted.
    """

    def __init__(self, facts: dict, arrays: manifest.Arrays, files: Callable[[str], str]):
        self.names = listing.Names(facts, arrays)
        self.classes = tuple(self.names.folders)
        self._offsets, self._lengths = arrays['offsets'], arrays['lengths']
        super().__init__([files(name) for name in self.classes], np.diff(arrays['first']))

    def name(self, index: int) -> str:
        return shown(f'{self.files[self._shard(index)]}:{self.names.file(index)}')

    def _read(self, shard, start, stop):
        with storage.ranges(self.files[shard]) as read:
            return [self._whole(read, index) for index in range(start, stop)]

    def _whole(self, read, index):
        length = int(self._lengths[index])
        data = read(int(self._offsets[index]), length)
        return data if len(data) == length else OSError(f'{self.name(index)} is cut short')


class ClassTars(Placed):
    """The pictures of the class tars in `path`, which is a folder or a tar itself: files with one
    of the `endings`, without hidden ones. The list is kept as `of` in `index`.

    `sizes`: of the tars in the folder, {name: bytes}; or of the tar `path`, {'': bytes}.

    Attributes:
      empty: the tars that hold no picture, and are no classes.

    Raises:
      RequestError, which names the setting `key`: a tar that is cut short, damaged or compressed,
        two members of one name, no pictures. StorageError: it cannot be read now. See
        `manifest.open_list`.
    """

    def __init__(
        self,
        path: str,
        sizes: Mapping[str, int],
        key: str,
        index: str,
        of: Mapping[str, str],
        endings: tuple[str, ...] = ENDINGS,
    ):
        files = {_class(name): storage.join(path, name) for name in sizes}

        def look(task):
            name, begin, end = task.split('\0')
            inside = f': the class tar {shown(name) + _TAR!r} in it' * (name not in files)
            with reading(files.get(name, path), key, inside) as file:
                if name:
                    columns = list(map(list, zip(*pictures(file, int(begin), int(end), endings))))
                    return manifest.Task([], len(columns[0]) if columns else 0, columns)
                return manifest.Task(list(_class_tars(file, int(end))), 0, [])

        def pack(found):
            empty = []

            def folders():
                for task, columns in found:
                    name = task.partition('\0')[0]
                    if columns:
                        yield name, columns
                    elif name:
                        empty.append(name)

            facts, arrays = placed(folders())
            check(
                len(arrays['ends']) > 0,
                f'{key}={path!r} has {len(empty)} class tars, and in none of them a picture: '
                f'looked for {", ".join(endings)}.',
            )
            return facts | {'empty': empty}, arrays

        tasks = [f'{_class(name)}\0{0}\0{size}' for name, size in sizes.items()]
        facts, arrays = manifest.open_list(index, of, tasks, look, pack)
        self.empty = facts['empty']
        super().__init__(facts, arrays, lambda name: files.get(name, path))


def placed(folders: Iterable[tuple[str, list]]) -> tuple[dict, manifest.Arrays]:
    """(facts, arrays) of `Placed` from (class, [names, lengths, offsets]), ... sorted by class."""
    places = [np.zeros((2, 0), np.int64)]

    def noted():
        for name, columns in folders:
            places.append(np.array(columns[1:], np.int64))
            yield name, columns

    facts, arrays = listing.pack(noted())
    lengths, offsets = np.concatenate(places, axis=1)
    return facts, arrays | {'lengths': lengths, 'offsets': offsets}


def members(file: typing.BinaryIO, begin: int, end: int) -> Iterator[Member]:
    """The regular files of the tar that lies from byte `begin` to `end` of a file, in order, their
    places counted from the beginning of the file.

    Raises:
      ValueError, tarfile.TarError: it is compressed, cut short or damaged, a member has a path that
        leads out of it, or holes.
    """
    file.seek(begin)
    if file.read(6).startswith(COMPRESSED):
        raise ValueError('it is compressed, so that nothing in it can be found: gunzip it')
    file.seek(begin)
    cut = tarfile.ReadError('it is cut short, or damaged')
    with tarfile.open(fileobj=file, mode='r:', encoding='utf-8', errors='surrogateescape') as tar:
        for member in tar:
            check_whole(member)
            if not begin < member.offset_data <= member.offset_data + member.size <= end:
                raise cut
            if not member.isreg():
                continue
            name = posixpath.normpath(member.name)
            if name.startswith(('/', '..')):
                raise ValueError(f'the path {member.name!r} leads out of it')
            yield Member(name, member.size, member.offset_data)
        # at a damaged header tarfile stops as at the end, which is a block of zeros
        file.seek(tar.offset)
        if tar.offset + tarfile.BLOCKSIZE > end or any(file.read(tarfile.BLOCKSIZE)):
            raise cut


def pictures(
    file: typing.BinaryIO, begin: int, end: int, endings: tuple[str, ...] = ENDINGS
) -> list[Member]:
    """Those of `members` that are pictures, sorted as the files of a folder are."""
    found = [
        member
        for member in members(file, begin, end)
        if member.name.lower().endswith(endings)
        and not any(part.startswith('.') for part in member.name.split('/'))
    ]
    found.sort(key=lambda member: posixpath.split(member.name))
    check_names([member.name for member in found])
    return found


@contextlib.contextmanager
def reading(path: str, key: str, inside: str = '') -> Iterator[typing.BinaryIO]:
    """Opens a tar; what cannot be read in it (`inside` says which part) is an error in a line,
    which names the setting or option `key`."""
    try:
        with storage.opened(path) as file:
            yield file
    except (OSError, tarfile.TarError, ValueError) as error:
        message = f'{key}={shown(path)!r}{inside} cannot be read ({error}).'
        raise of_storage(error, message) from error


def _class_tars(file, end) -> Iterator[str]:
    """The tasks of the tars in a tar."""
    found = list(members(file, 0, end))
    packed = [member.name for member in found if member.name.endswith(PACKED)]
    if packed:
        raise ValueError(f'{packed[0]!r} in it is compressed: unpack it, and gunzip what is in it')
    tars = [member for member in found if member.name.endswith(_TAR)]
    if not tars:
        raise ValueError(
            f'it holds {len(found)} files and no class tar: unpack it; ILSVRC2012_img_val.tar by '
            'python -m beit_jax.tools.prepare'
        )
    check_names([_class(member.name) for member in tars])
    for name, length, offset in tars:
        yield f'{_class(name)}\0{offset}\0{offset + length}'


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError where a name comes twice."""
    name, count = collections.Counter(names).most_common(1)[0] if names else ('', 0)
    if count > 1:
        raise ValueError(f'there are {count} members {name!r}')


def _class(name: str) -> str:
    return os.path.basename(name)[: -len(_TAR)]
