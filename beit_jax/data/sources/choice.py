"""Which source the settings name: the one place that knows all kinds."""

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.annotated_folder import TRAINING, VALIDATION, AnnotatedFolder
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset, holdout, some_of_each_class
from beit_jax.errors import check


def open_source(config: DataConfig, split: str) -> Source | None:
    """The examples of `split`, 'train' or 'evaluate'; None where nothing is held out.

    Raises:
      RequestError: the settings name no readable data.
    """
    source = _open(config, split == 'train')
    if split == 'train' and config.labels_per_class:
        return Subset(
            source, some_of_each_class(source, config.labels_per_class, config.subset_seed)
        )
    return source


def _open(config, train):
    if config.name == 'shapes':
        from beit_jax.data.sources.shapes import ShapesSource

        num_examples = config.num_examples if train else config.num_evaluate_examples
        split = 'train' if train else config.evaluate_split or 'evaluate'
        check(
            train or split != 'train',
            "config.data.evaluate_split='train' would evaluate on the training pictures: give "
            'another name.',
        )
        return (
            ShapesSource(num_examples, config.image_size, config.level, split, config.label_maps)
            if num_examples
            else None
        )
    if config.name == 'folder' and config.label_maps:
        source = AnnotatedFolder(config.path, TRAINING, index=config.index)
        if config.evaluate_path:
            return (
                source
                if train
                else AnnotatedFolder(
                    config.evaluate_path,
                    VALIDATION,
                    source.class_names,
                    'config.data.evaluate_path',
                    config.index,
                )
            )
        if source.parts:
            return (
                source
                if train
                else AnnotatedFolder(config.path, VALIDATION, index=config.index)
                if VALIDATION in source.parts
                else None
            )
    elif config.name == 'folder':
        source = FolderSource(config.path, index=config.index)
        if config.evaluate_path:
            return (
                source
                if train
                else FolderSource(
                    config.evaluate_path,
                    source.class_names,
                    'config.data.evaluate_path',
                    config.index,
                )
            )
    else:
        from beit_jax.data.sources.tfrecords import TfdsSource

        if config.evaluate_split:
            return TfdsSource(
                config.path,
                config.split if train else config.evaluate_split,
                config.index,
                config.label_maps,
            )
        source = TfdsSource(config.path, config.split, config.index, config.label_maps)
    kept, held_out = holdout(len(source), config.holdout)
    indices = kept if train else held_out
    return (
        source if len(indices) == len(source) else Subset(source, indices) if len(indices) else None
    )
