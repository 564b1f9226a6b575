"""Examples with label maps: whole, what the views of a batch show of one, and which classes they
have."""

from collections.abc import Callable, Sequence

import numpy as np

from beit_jax.data import parallel
from beit_jax.data.config import IGNORED, SegmentDataConfig, View
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import Box, flipped, whole_box
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.pictures.rand_augment import fill_color
from beit_jax.data.sources.source import Example, Source
from beit_jax.data.sources.subset import spread
from beit_jax.errors import check

LOOKED_AT = 64  # annotations, before the first step
_NAMED = 5  # classes in a line


def whole_example(
    source: Source, index: int, config: SegmentDataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W, C], label map uint8 [H, W]) of an example, as it is.

    Raises:
      OSError: it cannot be read, or is damaged.
      RequestError: what `label_maps.decode` and `check_size` refuse.
    """
    example = source.read(index)
    label_map = _label_map(source, index, example, config)
    pixels = image_ops(config).decode_crop(example.image, whole_box, config.reading)
    label_maps.check_size(label_map, source.name(index), *pixels.shape[:2])
    return pixels, label_map


def show_window(
    source: Source,
    index: int,
    example: Example,
    views: Sequence[View],
    config: SegmentDataConfig,
    window_of: Callable[[np.ndarray], tuple[Box, np.ndarray]],
    flip: bool = False,
) -> list[np.ndarray]:
    """What each view shows of example `index`, of the view's shape: a window, flipped before it is
    padded with the mean of the pixels or, in a label map, 255.

    Args:
      window_of: label map uint8 [H, W] -> (the box of the window in it, the window's classes as
        views show them, uint8 [h, w]).

    Raises:
      OSError, RequestError: see `whole_example`.
    """
    label_map = _label_map(source, index, example, config)
    box, classes = window_of(label_map)

    def box_of(height, width):
        label_maps.check_size(label_map, source.name(index), height, width)
        return box

    images = image_ops(config)
    crop = images.decode_crop(example.image, box_of, config.reading)

    def show(view):
        picture, fill = classes, IGNORED
        if view.method != 'nearest':
            (picture,) = images.resize(crop, [view], classes.shape)
            fill = fill_color(config.mean, config.pixels.top)
        return label_maps.pad(flipped(picture) if flip else picture, view.sides, fill)

    return [show(view) for view in views]


def count_pixels(
    source: Source, config: SegmentDataConfig, limit: int = 0
) -> tuple[int, np.ndarray]:
    """(annotations that can be read, how many of their pixels have each class, int64 [256]; 255:
    none) of at most `limit` examples, evenly spread; of all where it is 0.

    Raises:
      RequestError: what `label_maps.decode` refuses.
    """

    def count(index):
        try:
            label_map = _label_map(source, index, source.read(index), config)
        except OSError:
            return None
        return np.bincount(label_map.ravel(), minlength=IGNORED + 1)

    found = parallel.ahead(count, spread(source, limit).tolist(), config)
    counts = [one for one in found if one is not None]
    return len(counts), np.sum(counts, axis=0, dtype=np.int64, initial=0)


def classes_in_words(source: Source, config: SegmentDataConfig, which: str) -> str:
    """Which classes some annotations have, and how much of them is ignored. `which`: of what
    pictures, in words.

    Raises:
      RequestError: they have no class at all.
    """
    looked, pixels = count_pixels(source, config, LOOKED_AT)
    ignored = pixels[IGNORED] / max(1, pixels.sum())
    cause = (
        'the value 255 is of no class: write the first class as 0, the next as 1, or give each its '
        'value in classes.txt'
    )
    if config.reduce_zero_label:
        cause = 'with config.data.reduce_zero_label=true the values 0 and 255 are of no class'
    check(
        not looked or ignored < 1,
        f'all pixels of the {looked} {which} annotations looked at are ignored: {cause}.',
    )
    names = source.class_names
    missing = [name for name, count in zip(names, pixels) if not count]
    line = f'{looked} of {len(source):,} {which} annotations looked at: '
    line += f'{len(names) - len(missing)} of {len(names)} classes'
    if missing:
        more = ', ...' * (len(missing) > _NAMED)
        line += f' (no pixel of {", ".join(missing[:_NAMED])}{more})'
    line += f', {ignored:.1%} of the pixels ignored'
    alone = looked and len(names) - len(missing) < 2
    return f'WARNING: {line}: {cause}; one class alone is no score' if alone else line


def _label_map(source, index, example, config):
    return label_maps.decode(
        example.label,
        source.name(index),
        len(source.class_names),
        config.reduce_zero_label,
        config.reading,
    )
