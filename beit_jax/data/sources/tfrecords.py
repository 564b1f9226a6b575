"""Datasets that tensorflow-datasets prepared as TFRecord or ArrayRecord files, read in any order
without converting them. No TensorFlow, which TFDS does without here."""

import contextlib
import copy
import hashlib
import json
import os
from pathlib import Path
import tempfile

from google.protobuf.message import DecodeError
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from beit_jax.data.pictures.label_values import Coded
from beit_jax.data.sources.annotated_folder import read_classes
from beit_jax.data.sources.source import Example
from beit_jax.data.sources.stored import StoredSource
from beit_jax.data.stores import storage
from beit_jax.data.stores.shards import ArrayRecords, TFRecords
from beit_jax.errors import RequestError, check, of_storage

LABEL_MAPS = ('annotation', 'segmentation_mask')  # what TFDS's sets call them
# where features.json names a class, which TFDS imports: in its format of today, and of before 4.5
_CLASS = ('pythonClassName', 'python_class_name', 'type')
MAX_CLASSES = 1_000_000
_TFRECORD, _ARRAY_RECORD = tfds.core.FileFormat.TFRECORD, tfds.core.FileFormat.ARRAY_RECORD


class TfdsSource(StoredSource):
    """One split of a TFDS version directory, which holds dataset_info.json, shard by shard.

    The image is the dataset's only Image feature, the label its ClassLabel feature `label`, else 0.
    With `label_maps` there are two Image features, the label is the one that has a name of
    `LABEL_MAPS`, and the classes are those of `read_classes`. Where the records of TFRecord
    files are is kept in the folder `index`, unless that is ''.

    Raises:
      RequestError: not such a directory, an unknown split, no image feature or several, a shard
        that is missing or cut short.
    """

    def __init__(self, path: str, split: str = 'train', index: str = '', label_maps: bool = False):
        check(
            bool(path),
            'config.data.path is empty: set it to a TFDS version directory, for example '
            '~/tensorflow_datasets/mnist/3.0.1.',
        )
        sizes, info = _open(path)
        check(
            split in info.splits,
            f'split {split!r} is not in config.data.path={path!r}: it has '
            f'{", ".join(info.splits)}.',
        )
        check(
            info.file_format in (_TFRECORD, _ARRAY_RECORD),
            f'config.data.path={path!r} is stored as {info.file_format.value}: prepare it with '
            'file_format=tfrecord or array_record.',
        )
        check(
            info.file_format is _TFRECORD or not storage.is_remote(path),
            f'config.data.path={path!r} is stored as array_record, which is read from local files '
            'only: copy it, or prepare it as tfrecord.',
        )
        with _parsing(path):
            features = dict(info.features.items())
            names = [os.path.basename(file) for file in info.splits[split].filepaths]
            counts = info.splits[split].shard_lengths
        self._image, self._maps = _image_features(path, features, label_maps)
        label, self.class_names = features.get('label'), ()
        if label_maps:
            self.class_names, self._values = read_classes(path)
        elif isinstance(label, tfds.features.ClassLabel):
            check(
                (label.num_classes or 0) <= MAX_CLASSES,
                f'config.data.path={path!r}: its features.json claims {label.num_classes:,} '
                f'classes, more than {MAX_CLASSES:,}: it is damaged.',
            )
            self.class_names = tuple(label.names)
        files = [storage.join(path, name) for name in names]
        for name, file in zip(names, files):
            check(
                name in sizes,
                f'config.data.path: the shard {file!r} is missing: download or prepare the dataset '
                'again.',
            )
        sizes = [sizes[name] for name in names]
        shards = [f'{name}\t{size}\t{n}\n' for name, size, n in zip(names, sizes, counts)]
        self.fingerprint = hashlib.sha256(''.join(shards).encode()).hexdigest()
        if info.file_format is _ARRAY_RECORD:
            super().__init__(ArrayRecords(files, counts))
        else:
            of = {
                'list': 'records',
                'path': path if storage.is_remote(path) else os.path.abspath(path),
                'split': split,
                'shards': self.fingerprint,
            }
            super().__init__(TFRecords(files, sizes, counts, index, of))

    @property
    def images(self) -> 'TfdsSource':
        """The pictures alone."""
        pictures = copy.copy(self)
        pictures.class_names, pictures._maps = (), []
        return pictures

    def label(self, index: int) -> int:
        return self.read(index).label

    def _example(self, index, record):
        try:
            feature = tf_example_pb2.Example.FromString(record).features.feature
            names = (self._image, *self._maps)
            image, *maps = (feature[name].bytes_list.value[0] for name in names)
            if maps:
                label = Coded(maps[0], self._values) if self._values else maps[0]
                return Example(image, label)
            return Example(image, feature['label'].int64_list.value[0] if self.class_names else 0)
        except (DecodeError, IndexError) as error:
            raise OSError(f'{self.name(index)} is damaged: {error}') from error


def has_label_maps(path: str) -> bool:
    """Whether a set has images with a name of `LABEL_MAPS`."""
    _, info = _open(path)
    with _parsing(path):
        return not set(LABEL_MAPS).isdisjoint(info.features)


def _open(path):
    """(sizes of the files by name, what TFDS knows) of a version directory."""
    try:
        sizes = dict(storage.list_folder(path)[1]) if storage.kind(path) == 'folder' else {}
        for name in ('dataset_info.json', 'features.json'):
            check(
                name in sizes,
                f'config.data.path={path!r} is no TFDS version directory: it holds no {name}.',
            )
        with tempfile.TemporaryDirectory() as copy:  # of its small files
            for name in sizes:
                if name.endswith(('.json', '.txt')):
                    (Path(copy) / name).write_bytes(storage.read(storage.join(path, name)))
            return sizes, _read_info(path, copy)
    except OSError as error:
        message = f'config.data.path={path!r} cannot be read ({error}).'
        raise of_storage(error, message) from error


def _read_info(path, copy):
    """What TFDS knows of a directory, from the copy of its small files that was looked at."""
    known = _feature_classes()
    with _parsing(path):
        named = set(_named_classes(json.loads((Path(copy) / 'features.json').read_bytes())))
        check(
            named <= known,
            f'config.data.path={path!r} is refused: its features.json names '
            f'{ascii(min(named - known, default=""))[:120]}, which is no feature of '
            'tensorflow_datasets. Nothing in it was run.',
        )
        return tfds.builder_from_directory(copy).info


@contextlib.contextmanager
def _parsing(path):
    """Whatever TFDS stumbles over in a directory is a RequestError."""
    try:
        yield
    except (RequestError, OSError):
        raise
    except Exception as error:  # of all kinds, by TFDS and protobuf
        reason = ascii(str(error).strip().partition('\n')[0])[1:-1][:200]
        raise RequestError(
            f'config.data.path={path!r}: TFDS cannot read its dataset_info.json and features.json '
            f'({type(error).__name__}: {reason}): they are damaged, prepare the dataset again.'
        ) from error


def _feature_classes() -> set[str]:
    """The names of all classes of tfds.features, with those that they had before."""
    names = set()
    for kind in vars(tfds.features).values():
        if isinstance(kind, type) and issubclass(kind, tfds.features.FeatureConnector):
            names |= {f'{kind.__module__}.{kind.__name__}', *vars(kind).get('ALIASES', ())}
    return names


def _named_classes(content):
    """All names of classes in a features.json, those in JSON that it has as text too."""
    if isinstance(content, str) and content.lstrip()[:1] in ('{', '['):
        try:
            content = json.loads(content)
        except ValueError:  # as TFDS would read it
            return
    if isinstance(content, dict):
        for key in _CLASS:
            if isinstance(content.get(key), str):
                yield content[key]
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _named_classes(value)


def _image_features(path, features, label_maps):
    """The name of the images, and those of label maps: one with `label_maps`, else none."""
    images = [name for name, kind in features.items() if isinstance(kind, tfds.features.Image)]
    maps = [name for name in images if label_maps and name in LABEL_MAPS]
    check(
        len(maps) == label_maps,
        f'config.data.path={path!r} has {len(maps)} label maps, that is images '
        f'({", ".join(images)}) with a name of {", ".join(LABEL_MAPS)}: it takes one.',
    )
    images = [name for name in images if name not in maps]
    check(
        len(images) == 1,
        f'config.data.path={path!r} has {len(images)} image features ({", ".join(features)}): '
        'it takes one.',
    )
    return images[0], maps
