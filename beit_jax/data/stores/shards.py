"""Records in the numbered files (shards) of a data set, bytes each: in any order, or many that lie
side by side in one go."""

from collections.abc import Mapping, Sequence
import functools
import struct

import google_crc32c
import numpy as np

from beit_jax.data.stores import manifest, storage
from beit_jax.errors import RequestError, check, shown

# around a TFRecord: uint64 length and its uint32 checksum; uint32 checksum of the record
_HEADER, _FOOTER = 12, 4
_BLOCK = 2**24  # bytes of another store that are looked at in one go
_OPEN = 128  # shards: a thousand would reach the limit of open files


class Shards:
    """Records, counted through `files`, of which each holds as many as `counts` says."""

    def __init__(self, files: Sequence[str], counts: Sequence[int]):
        self.files = files
        # the first record of each shard
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        shard = self._shard(index)
        return f'{shown(self.files[shard])}:{index - self.starts[shard]}'

    def read(self, index: int) -> bytes:
        """Record `index`. Raises OSError where it cannot be read or its checksum is another."""
        (record,) = self.read_many(index, index + 1)
        if isinstance(record, OSError):
            raise record
        return record

    def read_many(self, start: int, stop: int) -> list[bytes | OSError]:
        """Records `start` .. `stop` - 1, each shard's in one read; an OSError takes the place of
        what `read` would raise it for."""
        records = []
        while start < stop:
            shard = self._shard(start)
            end = min(stop, int(self.starts[shard + 1]))
            try:
                records += self._read(shard, start, end)
            except OSError as error:
                records += [error] * (end - start)
            start = end
        return records

    def _shard(self, index):
        return int(np.searchsorted(self.starts, index, 'right')) - 1

    def _read(self, shard, start, stop):
        """Records `start` .. `stop` - 1, which lie in `shard`: at least one."""
        raise NotImplementedError


class TFRecords(Shards):
    """Shards of TFRecords of `sizes` bytes; where each record begins is read once from their
    headers and kept as the list `of` in `index`.

    Both checksums of a record are verified when it is read.

    Raises:
      RequestError: a shard that is cut short, damaged, or holds another count. See
        `manifest.open_list`.
    """

    def __init__(
        self,
        files: Sequence[str],
        sizes: Sequence[int],
        counts: Sequence[int],
        index: str,
        of: Mapping[str, str],
    ):
        super().__init__(files, counts)

        def look(task):
            shard = int(task)
            lengths = _lengths(files[shard], sizes[shard], counts[shard])
            return manifest.Task([], counts[shard], lengths)

        tasks = [f'{shard:09}' for shard in range(len(files))]
        _, arrays = manifest.open_list(index, of, tasks, look, _pack)
        self._offsets, self._lengths = arrays['offsets'], arrays['lengths']

    def _read(self, shard, start, stop):
        begin = int(self._offsets[start]) - _HEADER
        end = int(self._offsets[stop - 1] + self._lengths[stop - 1]) + _FOOTER
        with storage.ranges(self.files[shard]) as read:
            data = read(begin, end - begin)
        places = self._offsets[start:stop] - begin
        return [
            self._record(start + i, data, place, length)
            for i, (place, length) in enumerate(zip(places, self._lengths[start:stop]))
        ]

    def _record(self, index, data, place, length):
        record = data[place : place + length]
        stored = data[place - _HEADER : place] + data[place + length : place + length + _FOOTER]
        checksums = _checksum(struct.pack('<Q', length)), _checksum(record)
        if stored != struct.pack('<QII', length, *checksums):
            return OSError(f'{self.name(index)} is damaged: its checksum does not fit')
        return record


class ArrayRecords(Shards):
    """Shards of ArrayRecords, which are local files; they verify checksums, know where each record
    is, and serve many threads."""

    def __init__(self, files: Sequence[str], counts: Sequence[int]):
        super().__init__(files, counts)
        self._reader = functools.lru_cache(_OPEN)(self._open)

    def _open(self, shard):
        from array_record.python import array_record_module  # TFDS has it on Linux only

        reader = array_record_module.ArrayRecordReader(
            self.files[shard],
            'readahead_buffer_size:0,max_parallelism:0',
            file_reader_buffer_size=2**15,
        )
        count, expected = reader.num_records(), int(self.starts[shard + 1] - self.starts[shard])
        if count != expected:
            raise OSError(f'{self.files[shard]} is damaged: it has {count} records, not {expected}')
        return reader

    def _read(self, shard, start, stop):
        reader, first = self._reader(shard), int(self.starts[shard])
        try:
            return reader.read(start - first, stop - first)
        except (RuntimeError, ValueError, IndexError) as error:
            if stop - start == 1:
                return [OSError(f'{self.name(start)} is damaged: {error}')]
            singles = [self._read(shard, index, index + 1) for index in range(start, stop)]
            return [record for (record,) in singles]


def _checksum(data):
    """The CRC-32C of TFRecords: turned and shifted, as they hold checksums themselves."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _lengths(path, size, count):
    """The length of each record of a shard, from its headers: locally nothing else is read, from
    another store all, in few large reads."""
    block = _BLOCK if storage.is_remote(path) else _HEADER
    found, position = [], 0
    data, begin = b'', 0  # what was read last, and where in the shard
    try:
        with storage.ranges(path) as read:
            while position + _HEADER < size:
                if not begin <= position <= begin + len(data) - _HEADER:
                    begin, data = position, read(position, block)
                (length,) = struct.unpack_from('<Q', data, position - begin)
                found.append(length)
                position += _HEADER + length + _FOOTER
    except (OSError, struct.error) as error:
        raise RequestError(
            f'config.data.path: the shard {path!r} cannot be read ({error}).'
        ) from error
    check(
        position == size and len(found) == count,
        f'config.data.path: the shard {path!r} is damaged (dataset_info.json counts {count} '
        'records): download or prepare it again.',
    )
    return found


def _pack(found):
    """(facts, arrays) out of (shard, lengths), ...: `offsets` int64 [N], where each record begins
    in its shard, and `lengths` int64 [N]."""
    lengths = [np.zeros(0, np.int64), *(np.array(each, np.int64) for _, each in found)]
    offsets = [np.cumsum(each + _HEADER + _FOOTER) - each - _FOOTER for each in lengths]
    return {}, {'offsets': np.concatenate(offsets), 'lengths': np.concatenate(lengths)}
