"""Samples in tar files (WebDataset): members that follow one another and are called alike but for
the ending. Where each lies is read once from the headers, so that they come in any order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import json
import os
import tarfile
import typing

import numpy as np

from beit_jax.data.stores import manifest, storage
from beit_jax.data.stores.shards import Shards
from beit_jax.data.stores.tar_file import Member, members, reading


class Place(typing.NamedTuple):
    """Where a sample's image lies in its shard, in bytes, and its class (0 without classes)."""

    offset: int
    length: int
    label: int


class TarSamples(Shards):
    """The samples of tar shards (ustar, GNU or PAX), in the order in which they lie there.

    A sample is an image, the member with one of the endings `images`, and its class: the text of
    the member that ends with `label`, the field NAME of the member 'json' for 'json.NAME', or 0
    for ''. The places are kept as the list `of` in `index`.

    Attributes:
      labels: int32 [N].
      counts: how many samples each shard holds.

    Raises:
      RequestError, which names the setting `key`: a shard that is cut short, damaged or compressed;
        a sample without image or class, or with two. See `manifest.open_list`.
    """

    def __init__(
        self,
        files: Sequence[str],
        images: Sequence[str],
        label: str,
        key: str,
        index: str,
        of: Mapping[str, str],
    ):
        def look(task):
            places = _places(files[int(task)], images, label, key)
            return manifest.Task([], len(places), list(zip(*places)))

        tasks = [f'{shard:09}' for shard in range(len(files))]
        _, arrays = manifest.open_list(index, of, tasks, look, _pack)
        self.counts = arrays['counts']
        super().__init__(files, self.counts)
        self._offsets, self._lengths = arrays['offsets'], arrays['lengths']
        self.labels = arrays['labels']

    def name(self, index: int) -> str:
        return f'{super().name(index)}{self._member(index)}'

    def _member(self, index):
        """' (NAME)' as the header before an image has it; '' where it cannot be read."""
        try:
            with storage.ranges(self.files[self._shard(index)]) as read:
                header = read(int(self._offsets[index]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
            return f' ({tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name})'
        except (OSError, tarfile.HeaderError):
            return ''

    def _read(self, shard, start, stop):
        begin = int(self._offsets[start])
        end = int(self._offsets[stop - 1] + self._lengths[stop - 1])
        with storage.ranges(self.files[shard]) as read:
            data = read(begin, end - begin)
        places = zip(
            range(start, stop), self._offsets[start:stop] - begin, self._lengths[start:stop]
        )
        return [self._whole(i, data[place : place + length], length) for i, place, length in places]

    def _whole(self, index, data, length):
        return data if len(data) == length else OSError(f'{self.name(index)} is cut short')


def _places(path, images, label, key) -> list[Place]:
    """Those of the samples of a shard.

    A sample's label is read with the headers: then no read is needed to know it.
    """
    with reading(path, f'{key}: the shard {path!r}') as file:
        found = members(file, 0, file.seek(0, os.SEEK_END))
        return [_place(file, *sample, images, label) for sample in _samples(found)]


def _samples(found: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(name without ending, its members by their ending in lower case), in order."""
    files = (member for member in found if not _hidden(member.name))
    for name, group in itertools.groupby(files, lambda member: _parts(member.name)[0]):
        sample = {}
        for member in group:
            ending = _parts(member.name)[1]
            if ending in sample:
                raise ValueError(f'there are two members {member.name!r}')
            sample[ending] = member
        yield name, sample


def _hidden(name):
    """What macOS or WebDataset add to the samples."""
    return name.rpartition('/')[2].startswith(('.', '__'))


def _parts(name):
    """(name up to the first dot after the last slash, what follows it in lower case)."""
    folder, slash, file = name.rpartition('/')
    stem, _, ending = file.partition('.')
    return folder + slash + stem, ending.lower()


def _place(file, name, sample, images, label) -> Place:
    there = [ending for ending in images if ending in sample]
    if len(there) != 1:
        raise ValueError(
            f'the sample {name!r} has {len(there)} images ({", ".join(images)}) among '
            f'{", ".join(sample)}'
        )
    image = sample[there[0]]
    return Place(image.offset, image.length, _label(file, name, sample, label))


def _label(file, name, sample, label) -> int:
    if not label:
        return 0
    ending, _, field = label.partition('.') if label.startswith('json.') else (label, '', '')
    if ending not in sample:
        raise ValueError(f'the sample {name!r} has no {ending!r} among {", ".join(sample)}')
    file.seek(sample[ending].offset)
    text = file.read(min(sample[ending].length, 2**20))
    try:
        number = int(json.loads(text)[field] if field else text)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'the sample {name!r} has no number as {label!r} ({error})') from error
    if not 0 <= number < 2**31:
        raise ValueError(f'the sample {name!r} has the label {number}')
    return number


def _pack(found):
    """(facts, arrays) out of (shard, [offsets, lengths, labels]), ...: see `Place` and
    `TarSamples`."""
    columns = [each or ([], [], []) for _, each in found]
    kinds = {'offsets': np.int64, 'lengths': np.int64, 'labels': np.int32}
    arrays = {
        name: np.concatenate([np.array(each[i], kind) for each in columns])
        for i, (name, kind) in enumerate(kinds.items())
    }
    return {}, arrays | {'counts': np.array([len(each[0]) for each in columns], np.int64)}
