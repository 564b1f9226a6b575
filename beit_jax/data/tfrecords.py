"""Datasets that tensorflow-datasets prepared as TFRecord files, read in any order without converting them."""
import hashlib
import os
import struct

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from beit_jax.config import check
from beit_jax.data.sources import Example

_HEADER, _FOOTER = 12, 4  # around a record's bytes: uint64 length and its uint32 checksum; uint32 checksum of the bytes


class TfdsSource:
    """One split of a TFDS version directory (the one that holds dataset_info.json), in the order of its shards.

    The image is the dataset's only Image feature, the label its ClassLabel feature `label`, else 0.

    Raises:
      RequestError: not such a directory, an unknown split, no image feature or several, a shard that is missing or cut short.
    """

    def __init__(self, path: str, split: str = 'train'):
        check(bool(path), 'config.data.path is empty: set it to a TFDS version directory, for example ~/tensorflow_datasets/mnist/3.0.1.')
        for name in ('dataset_info.json', 'features.json'):
            check(os.path.isfile(os.path.join(path, name)), f'config.data.path={path!r} is no TFDS version directory: it holds no {name}.')
        info = tfds.builder_from_directory(path).info
        check(split in info.splits, f'split {split!r} is not in config.data.path={path!r}: it has {", ".join(info.splits)}.')
        check(info.file_format is tfds.core.FileFormat.TFRECORD,
              f'config.data.path={path!r} is stored as {info.file_format.value}: prepare it with file_format=tfrecord.')
        features = dict(info.features.items())
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        check(len(images) == 1, f'config.data.path={path!r} has {len(images)} image features ({", ".join(features)}): it takes one.')
        self._image, label = images[0], features.get('label')
        self.class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        self._files = [os.fspath(file) for file in info.splits[split].filepaths]
        counts = info.splits[split].shard_lengths
        self._offsets, self._lengths = map(np.concatenate, zip(*map(_scan, self._files, counts)))
        self._starts = np.concatenate([[0], np.cumsum(counts)])  # the first example of each shard
        manifest = ''.join(f'{os.path.basename(file)}\t{os.path.getsize(file)}\t{n}\n' for file, n in zip(self._files, counts))
        self.fingerprint = hashlib.sha256(manifest.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def _shard(self, index):
        return int(np.searchsorted(self._starts, index, 'right')) - 1

    def name(self, index: int) -> str:
        shard = self._shard(index)
        return f'{self._files[shard]}:{index - self._starts[shard]}'

    def read(self, index: int) -> Example:
        file = os.open(self._files[self._shard(index)], os.O_RDONLY)  # not kept open: a thousand shards reach the limit of open files
        try:
            record = os.pread(file, int(self._lengths[index]), int(self._offsets[index]))
        finally:
            os.close(file)
        try:
            feature = tf.train.Example.FromString(record).features.feature
            return Example(feature[self._image].bytes_list.value[0], feature['label'].int64_list.value[0] if self.class_names else 0)
        except (DecodeError, IndexError) as error:
            raise OSError(f'{self.name(index)} is damaged: {error}') from error

    def label(self, index: int) -> int:
        return self.read(index).label


def _scan(path, count):
    """(offsets, lengths), int64 [count] each, of the records in the shard `path`, from their headers alone."""
    check(os.path.isfile(path), f'config.data.path: the shard {path!r} is missing: download or prepare the dataset again.')
    size, position, found = os.path.getsize(path), 0, []
    file = os.open(path, os.O_RDONLY)
    try:
        while position + _HEADER < size:
            length, = struct.unpack('<Q', os.pread(file, 8, position))
            found.append((position + _HEADER, length))
            position += _HEADER + length + _FOOTER
    finally:
        os.close(file)
    check(position == size and len(found) == count,
          f'config.data.path: the shard {path!r} is damaged (dataset_info.json counts {count} records): download or prepare it again.')
    return np.array(found, np.int64).reshape(-1, 2).T
