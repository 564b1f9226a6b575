"""Label maps, for semantic segmentation: uint8 [H, W], the class of each pixel of an image, 255
where it is of none. No TensorFlow.

The window of a training view follows mmsegmentation's Resize (ratio_range), RandomCrop
(cat_max_ratio) and Pad, in one step.
"""

from collections.abc import Sequence

import numpy as np

from beit_jax.data.config import IGNORED, Reading
from beit_jax.data.pictures.boxes import ATTEMPTS, BadImageError, Box, is_jpeg
from beit_jax.data.pictures.label_values import Coded, classes_of
from beit_jax.data.pictures.read import opened
from beit_jax.errors import RequestError, check

MAX_SHARE = 0.75  # of one class in a training view
_LONG = 4  # times the size of a view: what the longer side of an image is resized to at most


def decode(
    label: bytes | np.ndarray | Coded,
    name: str,
    num_classes: int,
    reduce_zero_label: bool,
    reading: Reading = Reading(),
) -> np.ndarray:
    """The label map of an annotation: uint8 [H, W], each in [0, num_classes) or 255.

    Args:
      label: a PNG, or another lossless picture, of 8 bits a pixel whose values (of a palette:
        indices) are the classes, grey ones in three equal channels included; or uint8 [H, W]; or
        one with values of its own.
      name: of the example, for messages.
      reduce_zero_label: 0 becomes 255 and k class k - 1; 255 stays.

    Raises:
      BadImageError: a damaged file, or more pixels than `reading.max_pixels`.
      RequestError: a picture of another kind, or a value that is no class.
    """
    if isinstance(label, Coded):
        check(
            not reduce_zero_label,
            'config.data.reduce_zero_label is for annotations without values in classes.txt: leave '
            'it false.',
        )
        return _read(label.file, lambda image: classes_of(image, label.values, name), reading)
    values = label
    if not isinstance(label, np.ndarray):
        values = _read(label, lambda image: _numbers(image, name), reading)
    label_map = values - (values != IGNORED) if reduce_zero_label else values  # 0 wraps to 255
    wrong = (label_map >= num_classes) & (label_map != IGNORED)
    if wrong.any():
        allowed = f'0 to {num_classes - 1} (255: ignored)'
        if reduce_zero_label:
            allowed = f'1 to {num_classes} (0 and 255: ignored)'
        raise RequestError(
            f'the annotation of {name} has the value {values[wrong][0]}, but the {num_classes} '
            f'classes are {allowed}: repair it, name all classes in classes.txt in '
            'config.data.path, or look at config.data.reduce_zero_label.'
        )
    return label_map


def _read(label, values_of, reading):
    try:
        if is_jpeg(label):
            raise BadImageError('a JPEG, which changes values: make it a PNG')
        with opened(label, reading) as image:
            return values_of(image)
    except BadImageError as error:
        raise BadImageError(f'its annotation cannot be used: {error}') from error


def _numbers(image, name):
    mode, values = image.mode, np.asarray(image)
    if mode == 'RGB' and (values == values[..., :1]).all():
        return values[..., 0]
    check(
        mode in ('L', 'P', '1'),
        f'the annotation of {name} is a picture of mode {mode}: it takes a grey or palette one of '
        '8 bits a pixel, whose values are the classes, or classes.txt with a value a class.',
    )
    return values.astype(np.uint8, copy=False)


def check_size(label_map: np.ndarray, name: str, height: int, width: int) -> None:
    """Raises RequestError where an image, of height x width pixels, has a map of another size."""
    check(
        label_map.shape == (height, width),
        f'{name} has {height} x {width} pixels, its annotation {label_map.shape[0]} x '
        f'{label_map.shape[1]}: repair or remove the two.',
    )


def resize(label_map: np.ndarray, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """The box of a label map at `shape`: at each pixel the class of what lies under its centre.

    It computes with integers, so that it gives the same everywhere.
    """
    rows, columns = (
        start + (2 * np.arange(count) + 1) * side // (2 * count)
        for start, side, count in zip(box[:2], box[2:], shape)
    )
    return label_map[rows][:, columns]


def random_window(
    draws: Sequence[float], label_map: np.ndarray, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[Box, np.ndarray]:
    """What a training view shows: the box of the image, and the classes of the view, uint8 [h, w].

    The image is thought to be resized, keeping its aspect, to `scale` (uniform) times what just
    covers `size` (height, width), its longer side at most four times that of `size`, and `size` to
    be cut out of it; h or w is smaller where the resized image is. The box is that window in whole
    pixels of the image, so that only it need be resized, and image and label map are of exactly the
    same pixels. Of ten places, uniform, it is at the first where no class has more than 75 % of the
    pixels that are not ignored, else at the last.

    Args:
      draws: 1 + 2 ATTEMPTS numbers, uniform in [0, 1).
    """
    ratio_draw, *place_draws = draws
    whole, longer = label_map.shape, max(size)
    # its longer side in pixels of the image
    window = max(min(side * longer / new for side, new in zip(whole, size)), max(whole) / _LONG)
    window = window / (scale[0] + (scale[1] - scale[0]) * ratio_draw)
    windows = [window * (new / longer) for new in size]
    sides = [min(side, max(1, round(each))) for side, each in zip(whole, windows)]
    shape = tuple(
        new if side > each else max(1, round(new * side / each))
        for new, side, each in zip(size, whole, windows)
    )
    free = [there - side + 1 for there, side in zip(whole, sides)]
    for attempt in range(0, 2 * ATTEMPTS, 2):
        top, left = place_draws[attempt : attempt + 2]
        box = (int(top * free[0]), int(left * free[1]), *sides)
        classes = resize(label_map, box, shape)
        counts = np.bincount(classes.ravel(), minlength=IGNORED)[:IGNORED]
        if 0 < counts.max() <= MAX_SHARE * counts.sum():
            break
    return box, classes


def pad(picture: np.ndarray, shape: tuple[int, int], fill: int | tuple[int, ...]) -> np.ndarray:
    """[h, w, ...] -> [*shape, ...], filled up at the bottom and on the right."""
    if picture.shape[:2] == shape:
        return picture
    whole = np.full([*shape, *picture.shape[2:]], fill, picture.dtype)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    return whole
