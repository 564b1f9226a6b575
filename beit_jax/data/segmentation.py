"""Examples with label maps: whole, or what the views of a batch show of one."""

from collections.abc import Callable, Sequence

import numpy as np

from beit_jax.data.config import IGNORED, SegmentDataConfig, View
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import Box, flipped, whole_box
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.pictures.rand_augment import fill_color
from beit_jax.data.sources.source import Example, Source


def whole_example(
    source: Source, index: int, config: SegmentDataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [H, W, 3], label map uint8 [H, W]) of an example, as it is.

    Raises:
      OSError: it cannot be read, or is damaged.
      RequestError: what `label_maps.decode` and `check_size` refuse.
    """
    example = source.read(index)
    label_map = _label_map(source, index, example, config)
    pixels = image_ops(config).decode_crop(example.image, whole_box, config.max_pixels)
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
    crop = images.decode_crop(example.image, box_of, config.max_pixels)

    def show(view):
        picture, fill = classes, IGNORED
        if view.method != 'nearest':
            (picture,) = images.resize(crop, [view], classes.shape)
            fill = fill_color(config.mean)
        return label_maps.pad(flipped(picture) if flip else picture, view.size, fill)

    return [show(view) for view in views]


def _label_map(source, index, example, config):
    return label_maps.decode(
        example.label,
        source.name(index),
        len(source.class_names),
        config.reduce_zero_label,
        config.max_pixels,
    )
