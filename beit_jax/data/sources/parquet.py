"""Parquet files as the Hugging Face hub stores image data sets, and folders that its library
`datasets` saved, read in any order without converting them. Takes pyarrow."""

import os

import pyarrow as pa

from beit_jax.data.sources.folder import path_kind
from beit_jax.data.sources.source import Example
from beit_jax.data.sources.splits import digest, facts_of, of_split
from beit_jax.data.sources.stored import StoredSource
from beit_jax.data.sources.targets import USUAL as LABELS
from beit_jax.data.sources.targets import columns_of, read_targets
from beit_jax.data.stores import storage
from beit_jax.data.stores.tables import Rows, read_columns, read_schema
from beit_jax.errors import RequestError, check, of_storage

IMAGES = ('image', 'img', 'jpg', 'png', 'webp')  # columns


class ParquetSource(StoredSource):
    """The rows of one split of a folder of `.parquet` files, here or in `data` below, or of the
    `.arrow` files that `Dataset.save_to_disk` wrote.

    The files of a split are those whose name has the word, or all where no name has one; the split
    of a `DatasetDict` is a folder. The image is the column `image`: bytes, or a struct of `bytes`
    and `path`, where a path without bytes is that of a file beside the table. The label is the
    column `label`, else 0; its names stand in the schema. Columns that are '' have one of the names
    that are common. `labels` is that of `DataConfig`: without one class each, `label` may be
    several columns, as a,b. `class_names`, `key` and `index` are as of `FolderSource`.

    Raises:
      RequestError: nothing there, an unknown split, no such column. See `Rows`, `read_targets`.
    """

    def __init__(
        self,
        path: str,
        split: str = 'train',
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        image: str = '',
        label: str = '',
        labels: str = 'class',
    ):
        check(bool(path), f'{key} is empty: set it to a folder of .parquet files.')
        try:
            self._folder, stamps = _find(path, split, key)
            files = [storage.join(self._folder, name) for name in stamps]
            schema = read_schema(files[0])
        except OSError as error:
            raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
        names = {field.name: field.type for field in schema}
        image = _column(image, IMAGES, names, f'{key}={path!r}', 'image_field')
        wanted = []  # columns of what is no single class
        if labels != 'class':
            wanted, label = columns_of(label, list(names), [image], f'{key}={path!r}'), ''
        elif label or names.keys() & set(LABELS):
            label = _column(label, LABELS, names, f'{key}={path!r}', 'label_field')
        check(
            _holds_images(names[image]),
            f'{key}={path!r}: the column {image!r} is {names[image]}, not binary or a struct of '
            f'bytes and path: set config.data.image_field to another of {", ".join(names)}.',
        )
        of = {
            'list': 'rows',
            'path': self._folder if storage.is_remote(path) else os.path.abspath(self._folder),
            'files': digest(stamps, stamps.values()),
            'columns': f'{image} {label}',
        }
        rows = Rows(files, image, label, key, index, of)
        super().__init__(rows)
        self.labels, self.together = rows.labels, rows.together
        sizes = [size for size, _ in stamps.values()]
        self.fingerprint = digest(stamps, sizes, rows.file_counts)
        self.class_names = class_names
        if wanted:
            columns, self.labels = read_columns(files, wanted, key), None
            self._targets = read_targets(
                labels,
                columns,
                class_names,
                _named_of_list(schema, wanted[0], f'{key}={path!r}'),
                f'{key}={path!r}',
                self.name,
            )
            self.class_names, self.label_shape = self._targets.names, self._targets.shape
            self.label = self._targets.label
            self.fingerprint = digest([self.fingerprint], [self._targets.digest()])
        elif class_names is None:
            self.class_names = _class_names(schema, label, self.labels, f'{key}={path!r}')

    def _example(self, index, value):
        if isinstance(value, dict):
            value = value['bytes'] or self._beside(index, value.get('path'))
        if not value:
            raise OSError(f'{self.name(index)} has no image')
        return Example(value, self.label(index))

    def _beside(self, index, path):
        if not path:
            return None
        inside = os.path.normpath(path)
        if os.path.isabs(inside) or inside.startswith('..') or storage.is_remote(path):
            raise OSError(f'{self.name(index)}: its path {path!r} leads out of {self._folder}')
        return storage.read(storage.join(self._folder, path))


def _find(path, split, key):
    """(the folder of the files of a split, {name: (size, what changes with it)})."""
    for folder in (path, storage.join(path, 'data'), storage.join(path, split)):
        if path_kind(folder, key) != 'folder':
            continue
        if there := storage.stamps(folder, ('.parquet',)):
            return folder, {name: there[name] for name in of_split(there, split, f'{key}={path!r}')}
        if there := storage.stamps(folder, ('.arrow',)):
            return folder, {name: there[name] for name in _saved(folder, there, key)}
    raise RequestError(
        f'{key}={path!r} has no .parquet or .arrow file, nor have "data" and {split!r} in it: set '
        'it to the folder that holds them.'
    )


def _saved(folder, there, key):
    """The names of a saved data set's files in their order, which `state.json` says."""
    state = storage.join(folder, 'state.json')
    if not storage.kind(state):
        return list(there)
    names = lambda facts: [each['filename'] for each in facts['_data_files']]
    return facts_of(storage.read(state), names, f'{key}: {state!r}')


def _column(given, usual, names, where, setting):
    """The column that is meant."""
    found = [name for name in ((given,) if given else usual) if name in names]
    check(
        bool(found),
        f'{where} has no column {given or usual[0]!r}: set config.data.{setting} to one of '
        f'{", ".join(names)}.',
    )
    return found[0]


def _holds_images(kind):
    if pa.types.is_struct(kind):
        return 'bytes' in [field.name for field in kind]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema, label, labels, where):
    """As the hub writes them into a schema; else the numbers up to the highest label."""
    if not label:
        return ()
    names = _feature(schema, label, where).get('names')
    return tuple(names or map(str, range(int(labels.max(initial=0)) + 1)))


def _named_of_list(schema, column, where):
    """The names of the classes whose numbers stand in lists; () where the schema has none."""
    inside = _feature(schema, column, where).get('feature')
    return tuple(inside.get('names') or ()) if isinstance(inside, dict) else ()


def _feature(schema, column, where) -> dict:
    """What the hub says of a column."""
    text = (schema.metadata or {}).get(b'huggingface', b'{"info": {"features": {}}}')
    find = lambda facts: facts['info']['features'].get(column, {}) | {}
    return facts_of(text, find, f'{where}: what its schema says under "huggingface"')
