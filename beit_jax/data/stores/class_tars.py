"""Tars of pictures, one a class, in a folder or in one outer tar, as ImageNet is downloaded. Where
each picture lies is read once from the headers, so that they come in any order."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import os
import posixpath
import typing

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.stores import listing, manifest, storage
from beit_jax.data.stores.shards import Shards
from beit_jax.data.stores.tar_file import PACKED, Member, members, reading
from beit_jax.errors import check, shown

_TAR = '.tar'


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
            file = files.get(name, path)
            inside = f': the class tar {shown(name) + _TAR!r} in it' * (name not in files)
            with reading(file, f'{key}={shown(file)!r}{inside}') as file:
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


def pictures(
    file: typing.BinaryIO, begin: int, end: int, endings: tuple[str, ...] = ENDINGS
) -> list[Member]:
    """Those of `members` that are pictures, sorted as the files of a folder are."""
    found = [
        member
        for member in _inside(members(file, begin, end))
        if member.name.lower().endswith(endings)
        and not any(part.startswith('.') for part in member.name.split('/'))
    ]
    found.sort(key=lambda member: posixpath.split(member.name))
    check_names([member.name for member in found])
    return found


def _inside(found: Iterable[Member]) -> Iterator[Member]:
    """With paths in their short form. Raises ValueError where one leads out of the tar."""
    for member in found:
        name = posixpath.normpath(member.name)
        if name.startswith(('/', '..')):
            raise ValueError(f'the path {member.name!r} leads out of it')
        yield member._replace(name=name)


def _class_tars(file, end) -> Iterator[str]:
    """The tasks of the tars in a tar."""
    found = list(_inside(members(file, 0, end)))
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
