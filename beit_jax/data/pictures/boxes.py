"""Which pixels of an image are used, and which images cannot be: torchvision's laws. No TensorFlow.

A box is top, left, height and width in pixels: four int where pixels are cut out, four float where
they are resampled.
"""

from collections.abc import Callable, Sequence
import math
import struct

import numpy as np
from PIL import Image

from beit_jax.data.config import sides

Box = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]

ATTEMPTS = 10  # of a random crop, as torchvision
DRAWS = 4 * ATTEMPTS  # that a random box takes
MIN_SIDE = 8  # pixels; a smaller image is a bad record
_JPEG, _JPEG_END, _JPEG_SCAN, _PNG = b'\xff\xd8\xff', b'\xff\xd9', b'\xff\xda', b'\x89PNG\r\n\x1a\n'


class BadImageError(OSError):
    """An image that cannot be used; str() says why."""


class FormatError(BadImageError):
    """An image of other channels or bits than the settings promise."""


def random_box(
    draws: Sequence[float],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """torchvision's RandomResizedCrop.

    A box of `scale` times the area (uniform) and width / height in `ratio` (log-uniform): the first
    of ten attempts that fits, at a uniform place; if none does, the largest central box with its
    ratio clamped.

    Args:
      draws: DRAWS numbers, uniform in [0, 1).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(0, DRAWS, 4):
        area_draw, ratio_draw, top_draw, left_draw = draws[attempt : attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(top_draw * (height - rows + 1))
            return top, int(left_draw * (width - columns + 1)), rows, columns
    rows = min(height, max(1, round(width / ratio[0])))
    columns = min(width, max(1, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def center_box(
    height: int, width: int, size: int | tuple[int, int], share: float = 224 / 256
) -> FloatBox:
    """What torchvision's Resize(size / share) and CenterCrop(size) show of a picture; of a size
    that is no square what timm's ResizeKeepRatio does, which resizes it to just cover
    size / share.

    Both round, to pixels of the resized picture: so the box is only about of the shape of `size`,
    and only about in the middle. To resample it to `size` does both in one step.
    """
    shape, whole = sides(size), (height, width)
    covered = [int(side / share) for side in shape]
    # the axis that just fits: of a square the shorter one
    short, shorter = min(zip(covered, whole), key=lambda axis: axis[1] / axis[0])
    # where it is that axis, int(short * side / side) is that
    resized = [int(short * side / shorter) for side in whole]
    starts = [round((new - side) / 2) for new, side in zip(resized, shape)]
    top, left = (start * side / new for start, side, new in zip(starts, whole, resized))
    return top, left, shape[0] * height / resized[0], shape[1] * width / resized[1]


def pixel_box(box: FloatBox) -> Box:
    """The box of whole pixels that is nearest, inside of the picture."""
    top, left, height, width = box
    return int(top), int(left), max(1, round(height)), max(1, round(width))


def whole_box(height: int, width: int) -> Box:
    """All of it."""
    return 0, 0, height, width


def box_inside(box_of: Callable[[int, int], Box], height: int, width: int) -> Box:
    """The box of an image of that size.

    Raises:
      BadImageError: a side below 8 pixels.
    """
    if min(height, width) < MIN_SIDE:
        raise BadImageError(f'smaller than {MIN_SIDE} pixels')
    return box_of(height, width)


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Raises BadImageError where a header promises more pixels than there may be: ten bytes can
    ask for gigabytes."""
    if height * width > max_pixels:
        raise BadImageError(
            f'{height} x {width} pixels, more than config.data.max_pixels ({max_pixels:,})'
        )


def png_size(image: bytes) -> tuple[int, int]:
    """(height, width) by the header of a PNG file."""
    if image[12:16] != b'IHDR' or len(image) < 24:
        raise BadImageError('truncated or damaged')
    width, height = struct.unpack_from('>II', image, 16)
    return height, width


def crop(pixels: np.ndarray, box_of: Callable[[int, int], Box]) -> np.ndarray:
    """[H, W, C] -> [h, w, C], a view of it: the box `box_of(H, W)`."""
    top, left, height, width = box_inside(box_of, *pixels.shape[:2])
    return pixels[top : top + height, left : left + width]


def flipped(picture: np.ndarray) -> np.ndarray:
    """[H, W, ...], left and right exchanged; RGB three times as fast as by NumPy."""
    if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)):
        return picture[:, ::-1]
    return np.asarray(Image.fromarray(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def is_png(image: bytes) -> bool:
    """Whether a file is a PNG."""
    return image.startswith(_PNG)


def is_jpeg(image: bytes) -> bool:
    """Whether a file is a JPEG.

    Raises:
      BadImageError: it is one that is cut off. A crop above the place where a JPEG was cut
        off would decode, so its end is looked for here, at no cost: the last end marker stands
        after the last scan (an earlier one may close an embedded thumbnail, and some cameras append
        bytes of their own).
    """
    if not image.startswith(_JPEG):
        return False
    if not image.endswith(_JPEG_END) and image.rfind(_JPEG_END) <= image.rfind(_JPEG_SCAN):
        raise BadImageError('truncated')
    return True
