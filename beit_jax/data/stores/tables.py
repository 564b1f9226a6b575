"""Rows of Parquet and Arrow files: in any order, or many that lie side by side in one go. Of
Parquet a row group is read at a time, as it is compressed; Arrow files are mapped."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from beit_jax.data.stores import manifest, storage
from beit_jax.data.stores.shards import Shards
from beit_jax.errors import of_storage

_KEPT = 8  # row groups that stay in memory, of some ten megabytes each


class Rows(Shards):
    """The rows of tables in `files`, counted through: a record is the value of the column `image`
    as pyarrow has it. How many rows each group holds, and all labels, are kept as the list `of` in
    `index`.

    Attributes:
      labels: int64 [N], the column `label`; zeros where that is ''.
      file_counts: how many rows each file holds.
      together: how many rows are read for the sake of one, 1 where all groups stay in memory.

    Raises:
      RequestError, which names the setting `key`: a file that is damaged or has no such columns.
        See `manifest.open_list`.
    """

    def __init__(
        self,
        files: Sequence[str],
        image: str,
        label: str,
        key: str,
        index: str,
        of: Mapping[str, str],
    ):
        def look(task):
            path = files[int(task)]
            try:
                with _opened(path) as table:
                    table.schema.field(image)  # KeyError where there is none
                    counts = table.counts
                    labels = _labels(table, label) if label else [0] * sum(counts)
            except (OSError, pa.ArrowException, KeyError, ValueError) as error:
                raise of_storage(error, f'{key}: {path!r} cannot be read ({error}).') from error
            return manifest.Task([], len(labels), [counts, labels])

        tasks = [f'{number:09}' for number in range(len(files))]
        _, arrays = manifest.open_list(index, of, tasks, look, _pack)
        self._image, self._file = image, arrays['file']
        # a shard is a group of rows
        super().__init__(files, arrays['counts'])
        self.labels = arrays['labels']
        counts = arrays['counts']
        self.together = int(np.median(counts)) if len(counts) > _KEPT else 1
        ends = np.cumsum(np.bincount(self._file, arrays['counts'], len(files))).astype(np.int64)
        self._file_starts = np.concatenate([[0], ends])
        self._first_group = np.searchsorted(self._file, np.arange(len(files)))
        self._group = functools.lru_cache(_KEPT)(self._read_group)

    @property
    def file_counts(self) -> list[int]:
        return np.diff(self._file_starts).tolist()

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self._file_starts, index, 'right')) - 1
        return f'{self.files[file]}:{index - self._file_starts[file]}'

    def _read_group(self, group):
        file = int(self._file[group])
        try:
            with _opened(self.files[file]) as table:
                return table.read(group - int(self._first_group[file]), self._image)
        except pa.ArrowException as error:
            raise OSError(f'{self.files[file]} is damaged: {error}') from error

    def _read(self, shard, start, stop):
        rows, first = self._group(shard), int(self.starts[shard])
        if len(rows) != self.starts[shard + 1] - first:
            raise OSError(f'{self.name(start)}: its file has changed since it was listed')
        return rows[start - first : stop - first].to_pylist()


class _Parquet:
    def __init__(self, file):
        self._file = parquet.ParquetFile(file)
        self.schema, metadata = self._file.schema_arrow, self._file.metadata
        self.counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def read(self, group: int, column: str) -> pa.ChunkedArray:
        # threads of its own would wait for the pipeline's
        return self._file.read_row_group(group, [column], use_threads=False)[column]


class _Arrow:
    def __init__(self, file):
        reader = pa.ipc.open_stream(file)
        self.schema, self._batches = reader.schema, list(reader)
        self.counts = [len(batch) for batch in self._batches]

    def read(self, group: int, column: str) -> pa.Array:
        return self._batches[group][column]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[_Parquet | _Arrow]:
    if path.endswith('.arrow'):
        with pa.memory_map(path) as file:
            yield _Arrow(file)
        return
    with storage.opened(path) as file:
        yield _Parquet(file)


def read_schema(path: str) -> pa.Schema:
    """Columns and metadata. Raises OSError where the file cannot be read or is damaged."""
    try:
        with _opened(path) as table:
            return table.schema
    except pa.ArrowException as error:
        raise OSError(f'{path} is damaged: {error}') from error


def read_columns(files: Sequence[str], names: Sequence[str], key: str) -> dict[str, list]:
    """The cells of some columns of all files, in order.

    Raises:
      RequestError, which names the setting `key`: see `Rows`.
    """
    cells = {name: [] for name in names}
    for path in files:
        try:
            with _opened(path) as table:
                for group in range(len(table.counts)):
                    for name in names:
                        cells[name] += table.read(group, name).to_pylist()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise of_storage(error, f'{key}: {path!r} cannot be read ({error}).') from error
    return cells


def _labels(table, column):
    """All of a column of whole numbers."""
    kind = table.schema.field(column).type
    if not pa.types.is_integer(kind):
        raise ValueError(
            f'column {column!r} is {kind}, no whole number; several classes or numbers of an '
            'example take config.data.labels=classes, or numbers'
        )
    parts = [table.read(group, column).to_pylist() for group in range(len(table.counts))]
    labels = [label for part in parts for label in part]
    if None in labels:
        raise ValueError(f'row {labels.index(None)} has no {column!r}')
    return labels


def _pack(found):
    """(facts, arrays) out of (file, [rows of each group, labels]), ...: `counts` int64 [groups],
    `file` int64 [groups], the number of each one's file, `labels` int64 [N]."""
    files = list(found)
    groups = [len(counts) for _, (counts, _) in files]
    column = lambda i: np.concatenate([np.zeros(0, np.int64), *(each[i] for _, each in files)])
    arrays = {'counts': column(0), 'labels': column(1)}
    arrays = {name: array.astype(np.int64) for name, array in arrays.items()}
    return {}, arrays | {'file': np.repeat(np.arange(len(files)), groups)}
