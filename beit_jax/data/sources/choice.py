"""Which source the settings name: the one place that knows all kinds."""

import functools

from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.read import formats
from beit_jax.data.sources.annotated_folder import TRAINING, VALIDATION, AnnotatedFolder
from beit_jax.data.sources.class_tars import ClassTarsSource
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.metadata import MetadataSource
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset, holdout, some_of_each_class
from beit_jax.data.sources.webdataset import WebDatasetSource
from beit_jax.errors import RequestError, check

_EVALUATE_PATH = 'config.data.evaluate_path'


def open_source(config: DataConfig, split: str) -> Source | None:
    """The examples of `split`, 'train' or 'evaluate'; None where nothing is held out.

    Raises:
      RequestError: the settings name no readable data.
    """
    formats(config.endings)
    train = split == 'train'
    source = _open(config, train)
    if train and config.labels_per_class:
        indices = some_of_each_class(source, config.labels_per_class, config.subset_seed)
        return Subset(source, indices)
    return source


def _open(config: DataConfig, train: bool) -> Source | None:
    if config.name == 'shapes':
        return _shapes(config, train)
    if config.name == 'tfds':
        return _tfds(config, train)
    if config.name in ('webdataset', 'parquet'):
        return _files(config, train)
    if config.name == 'class_tars':
        return _classes(ClassTarsSource, config, train)
    if config.label_maps:
        return _annotated_folder(config, train)
    return _classes(_folder(config), config, train)


def _shapes(config, train):
    from beit_jax.data.sources.shapes import ShapesSource

    for name in ('path', 'evaluate_path'):
        check(
            not getattr(config, name),
            f'config.data.{name}={getattr(config, name)!r} is not read where config.data.name is '
            "'shapes', which are drawn: set config.data.name=folder (or tfds), or leave it out.",
        )
    count = config.num_examples if train else config.num_evaluate_examples
    split = 'train' if train else config.evaluate_split or 'evaluate'
    check(
        train or split != 'train',
        "config.data.evaluate_split='train' would evaluate on the training pictures: give "
        'another name.',
    )
    if not count:
        return None
    return ShapesSource(count, max(config.shape), config.level, split, config.label_maps)


def _tfds(config, train):
    try:
        from beit_jax.data.sources.tfrecords import TfdsSource
    except ImportError as error:
        raise RequestError(
            f'config.data.name=tfds takes TensorFlow Datasets ({error}): pip install '
            'tensorflow-datasets.'
        ) from error

    split = config.split if train or not config.evaluate_split else config.evaluate_split
    source = TfdsSource(config.path, split, config.index, config.label_maps)
    return source if config.evaluate_split else _share(source, config, train)


def _files(config, train):
    """Of many samples each, with a split in their names."""
    fields = {'index': config.index, 'label': config.label_field}
    if config.name == 'parquet':
        kind = _parquet()
        fields |= {'image': config.image_field, 'labels': config.labels}
    else:
        kind, fields['images'] = WebDatasetSource, tuple(end[1:] for end in config.reading.listed)
    source = kind(config.path, config.split, **fields)
    if not (config.evaluate_path or config.evaluate_split):
        return _share(source, config, train)
    if train:
        return source
    split, names = config.evaluate_split or 'validation', source.class_names
    if config.evaluate_path:
        return kind(config.evaluate_path, split, names, _EVALUATE_PATH, **fields)
    return kind(config.path, split, names, **fields)


def _parquet():
    try:
        from beit_jax.data.sources.parquet import ParquetSource
    except ImportError as error:
        raise RequestError(
            f'config.data.name=parquet takes pyarrow ({error}): pip install pyarrow.'
        ) from error
    return ParquetSource


def _folder(config):
    """Of a folder a class, or with a table of what each picture is."""
    if config.labels == 'class' and not config.label_field:
        return FolderSource
    return functools.partial(MetadataSource, labels=config.labels, field=config.label_field)


def _classes(kind, config, train):
    """Of a folder or a tar a class."""
    fields = {'index': config.index, 'endings': config.reading.listed}
    source = kind(config.path, **fields)
    if not config.evaluate_path:
        return _share(source, config, train)
    if train:
        return source
    known = {'class_names': source.class_names, 'key': _EVALUATE_PATH}
    return kind(config.evaluate_path, **known, **fields)


def _annotated_folder(config, train):
    fields = {'index': config.index, 'endings': config.reading.listed}
    source = AnnotatedFolder(config.path, TRAINING, **fields)
    if not config.evaluate_path and not source.parts:
        return _share(source, config, train)
    if train:
        return source
    if config.evaluate_path:
        return AnnotatedFolder(
            config.evaluate_path, VALIDATION, source.class_names, _EVALUATE_PATH, **fields
        )
    if VALIDATION in source.parts:
        return AnnotatedFolder(config.path, VALIDATION, **fields)
    return None


def _share(source: Source, config: DataConfig, train: bool) -> Source | None:
    """What is kept for training where a share of the one source is held out, or that share."""
    kept, held_out = holdout(len(source), config.holdout)
    indices = kept if train else held_out
    if len(indices) == len(source):
        return source
    return Subset(source, indices) if len(indices) else None
