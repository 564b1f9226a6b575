"""From an encoded image to cropped, resized pixels: stateless TensorFlow ops that follow torchvision's laws and Pillow's pixels.

A box is int32 [4]: top, left, height, width in pixels. A seed2 is an int64 [2] seed of one draw.
"""
from collections.abc import Callable
import math

import numpy as np
import tensorflow as tf

from beit_jax.data.config import View

tf.config.set_visible_devices([], 'GPU')  # the accelerator belongs to JAX

ATTEMPTS = 10  # of a random crop, as torchvision
MIN_SIDE = 8  # pixels; a smaller image is a bad record
_NO_PIXELS = np.zeros([0, 0, 3], np.uint8)
_TOO_SMALL = f'smaller than {MIN_SIDE} pixels'
_JPEG, _JPEG_END, _JPEG_SCAN, _PNG = b'\xff\xd8\xff', b'\xff\xd9', b'\xff\xda', b'\x89PNG\r\n\x1a\n'


def random_box(seed2, height, width, scale: tuple[float, float], ratio: tuple[float, float]):
    """torchvision's RandomResizedCrop: a box of `scale` times the area (uniform) and width / height in `ratio` (log-uniform).

    The first of ten attempts that fits, at a uniform place; if none does, the largest central box with its ratio clamped.
    """
    draws = tf.random.stateless_uniform([4, ATTEMPTS], seed2, dtype=tf.float64, alg='philox')  # the same on every machine
    area_draw, ratio_draw, top_draw, left_draw = tf.unstack(draws)
    rows, columns = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    area = rows * columns * (scale[0] + (scale[1] - scale[0]) * area_draw)
    aspect = tf.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * ratio_draw)
    heights, widths = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= rows) & (widths > 0) & (widths <= columns)
    tops, lefts = tf.floor(top_draw * (rows - heights + 1)), tf.floor(left_draw * (columns - widths + 1))
    drawn = tf.stack([tops, lefts, heights, widths], 1)[tf.argmax(fits)]
    central_height, central_width = tf.minimum(rows, tf.round(columns / ratio[0])), tf.minimum(columns, tf.round(rows * ratio[1]))
    central = tf.stack([(rows - central_height) // 2, (columns - central_width) // 2, central_height, central_width])
    return tf.cast(tf.where(tf.reduce_any(fits), drawn, central), tf.int32)


def center_box(height, width, share: float = 224 / 256):
    """The central square of `share` times the shorter side: resizing to 256 and cropping 224, in one step."""
    side = tf.maximum(1, tf.cast(tf.round(share * tf.cast(tf.minimum(height, width), tf.float64)), tf.int32))
    return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


def decode_crop(image, box_of: Callable, pixels=_NO_PIXELS):
    """The pixels uint8 [h, w, 3], RGB, of the box `box_of(H, W)` of an image of H x W pixels.

    Greyscale is repeated, CMYK converted, a palette looked up and alpha dropped, as by Pillow's convert('RGB'). EXIF orientation is
    ignored, as torchvision's ImageFolder ignores it. Of a JPEG only the box is decoded.

    Args:
      image: string [], a JPEG or PNG file; '' where `pixels`, uint8 [H, W, 3], are given instead.

    Raises:
      InvalidArgumentError: a damaged file, or a side below 8 pixels.
    """
    def box_inside(size):
        height, width = tf.unstack(size, num=2)
        tf.raw_ops.Assert(condition=tf.minimum(height, width) >= MIN_SIDE, data=[_TOO_SMALL])
        return box_of(height, width)

    def from_jpeg():
        box = box_inside(tf.image.extract_jpeg_shape(image)[:2])
        return tf.image.decode_and_crop_jpeg(image, box, channels=3, dct_method='INTEGER_ACCURATE')  # the method that Pillow uses

    def from_pixels():
        whole = tf.cond(tf.strings.length(image) > 0, lambda: tf.image.decode_png(image, channels=3), lambda: tf.convert_to_tensor(pixels))
        top, left, height, width = tf.unstack(box_inside(tf.shape(whole)[:2]))
        return whole[top:top + height, left:left + width]

    return tf.cond(tf.strings.substr(image, 0, len(_JPEG)) == _JPEG, from_jpeg, from_pixels)


def resize(pixels, view: View):
    """uint8 [H, W, 3] -> uint8 [size, size, 3], antialiased as by Pillow; pixels of the view's size come out as they went in."""
    resized = tf.image.resize(pixels, [view.size, view.size], view.method, antialias=True)
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8), [view.size, view.size, 3])


def header_flaw(image: bytes | np.ndarray) -> str | None:
    """Why `image` cannot be used, as far as its first and last bytes tell at no cost; None where they look right.

    A crop above the place where a JPEG was cut off would decode, so the end is looked for here: the last end marker stands after the
    last scan (an earlier one may close an embedded thumbnail, and some cameras append bytes of their own).
    """
    if isinstance(image, np.ndarray) or image.startswith(_PNG):
        return None
    if not image.startswith(_JPEG):
        return 'not a JPEG or PNG image'
    whole = image.endswith(_JPEG_END) or image.rfind(_JPEG_END) > image.rfind(_JPEG_SCAN)
    return None if whole else 'truncated'


def find_flaw(image: bytes | np.ndarray) -> str | None:
    """Why `image` cannot be used, in words, from decoding all of it; None for a good one."""
    flaw = header_flaw(image)
    if flaw:
        return flaw
    try:
        encoded, pixels = (b'', image) if isinstance(image, np.ndarray) else (image, _NO_PIXELS)
        decode_crop(encoded, lambda height, width: tf.stack([0, 0, height, width]), pixels)
    except tf.errors.InvalidArgumentError as error:
        return _TOO_SMALL if _TOO_SMALL in str(error) else 'truncated or damaged'
    return None
