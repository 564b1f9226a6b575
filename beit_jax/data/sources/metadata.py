"""A folder of pictures with a table of their labels in it, metadata.csv or metadata.jsonl, as the
Hugging Face hub's imagefolder has them."""

import csv
import hashlib
import io
import json

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.folder import FolderSource, numbered
from beit_jax.data.sources.source import Example, or_error
from beit_jax.data.sources.targets import columns_of, read_targets
from beit_jax.data.stores import storage
from beit_jax.errors import RequestError, check, of_storage

NAME = 'file_name'  # the column of the paths of pictures, below the folder of the table
FILES = ('metadata.csv', 'metadata.jsonl')


class MetadataSource:
    """The pictures below a folder; what each is, the row of the table with its `file_name` says.

    `labels` is that of `DataConfig`, `field` its `label_field`; `class_names`, `key`, `index` and
    `endings` are as of `FolderSource`.

    Raises:
      RequestError: no such table, a picture without row, a row without picture; see `read_targets`.
    """

    def __init__(
        self,
        path: str,
        labels: str = 'class',
        field: str = '',
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        endings: tuple[str, ...] = ENDINGS,
    ):
        self.images = FolderSource(path, (), key, index, endings)
        self.folders = self.images.folders
        file, columns = _read(path, key)
        names = columns.pop(NAME)
        rows = {name: row for row, name in enumerate(names)}
        check(len(rows) == len(names), f'{file}: {_twice(names)!r} has several rows: leave one.')
        pictures = [self._below(index) for index in range(len(self))]
        missing = [name for name in pictures if name not in rows]
        check(
            not missing,
            f'{file} has no row for {len(missing)} of {len(self)} pictures, '
            f'{missing and missing[0]!r} the first: add rows, or move these pictures away.',
        )
        more = sorted(rows.keys() - set(pictures))
        check(
            not more,
            f'{file} has rows for {len(more)} pictures that are not there, '
            f'{more and more[0]!r} the first: add the pictures, or remove the rows.',
        )
        wanted = columns_of(field, list(columns), (), file)
        order = [rows[name] for name in pictures]
        cells = {name: [columns[name][row] for row in order] for name in wanted}
        if labels == 'class':
            self._read_classes(cells, class_names, file)
            content = '\n'.join(self.class_names).encode() + np.array(self._labels).tobytes()
        else:
            row = pictures.__getitem__
            self.targets = read_targets(labels, cells, class_names, (), file, row)
            self.class_names = self.targets.names
            self.label_shape, self.label = self.targets.shape, self.targets.label
            content = self.targets.digest().encode()
        self.fingerprint = hashlib.sha256(self.images.fingerprint.encode() + content).hexdigest()

    def _read_classes(self, cells, class_names, file):
        check(
            len(cells) == 1,
            f'{file}: one class each stands in one column, not in {", ".join(cells)}: set '
            'config.data.label_field to it, or config.data.labels=classes.',
        )
        (texts,) = cells.values()
        texts = [str(text or '').strip() for text in texts]
        check(
            all(texts),
            f'{file}: {self._below(texts.index("")) if "" in texts else ""} has no class: fill it '
            'in.',
        )
        self.class_names, self._labels = numbered(texts, class_names, file)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def _below(self, index):
        return self.images.file(index)[len(self.images.path) :].lstrip('/')

    def read(self, index: int) -> Example:
        return Example(storage.read(self.images.file(index)), self.label(index))

    def label(self, index: int) -> int:
        return self._labels[index]

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


def _read(folder: str, key: str) -> tuple[str, dict[str, list]]:
    """(the path of the table, its columns)."""
    try:
        there = {name for name, _ in storage.list_folder(folder, ('.csv', '.jsonl'))[1]}
        found = [name for name in FILES if name in there]
        check(
            len(found) == 1,
            f'{key}={folder!r} holds {" and ".join(found) or "neither " + " nor ".join(FILES)}: '
            'give one table, which says what each picture is.',
        )
        file = storage.join(folder, found[0])
        text = storage.read(file).decode('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise of_storage(error, f'{key}={folder!r}: its table cannot be read ({error}).') from error
    rows = _csv_rows(text, file) if file.endswith('.csv') else _json_rows(text, file)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(_names(rows))}
    check(NAME in columns, f'{file} has no column {NAME!r}, or no rows: add it.')
    bad = [row for row, name in enumerate(columns[NAME]) if not isinstance(name, str) or not name]
    check(not bad, f'{file}: row {bad and bad[0] + 1} has no {NAME}: fill it in.')
    return file, columns


def _names(rows):
    return (name for row in rows for name in row)


def _csv_rows(text, file):
    """A dict a row. Raises RequestError where one has more or fewer cells than the head."""
    rows = [row for row in csv.reader(io.StringIO(text, newline='')) if row]
    head = [name.strip() for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], 1):
        check(
            len(row) == len(head),
            f'{file}: row {number} has {len(row)} cells, the head has {len(head)}: repair it.',
        )
    return [dict(zip(head, row)) for row in rows[1:]]


def _json_rows(text, file):
    rows = []
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RequestError(f'{file}: line {number} is no JSON ({error}): repair it.') from error
        check(isinstance(rows[-1], dict), f'{file}: line {number} is no JSON object: repair it.')
    return rows


def _twice(names):
    seen = set()
    return next((name for name in names if name in seen or seen.add(name)), '')
