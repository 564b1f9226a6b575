"""Files to cropped, resized pixels by TensorFlow's operations alone: the reference, and what takes
no other library."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from beit_jax.data.config import Reading, View
from beit_jax.data.pictures.boxes import (
    BadImageError,
    Box,
    FloatBox,
    box_inside,
    check_pixels,
    crop,
    is_jpeg,
    is_png,
    png_size,
    whole_box,
)
from beit_jax.data.pictures.read import decode, upright

tf.config.set_visible_devices([], 'GPU')  # the accelerator belongs to JAX
_DCT = 'INTEGER_ACCURATE'  # the method that Pillow uses
_KERNELS = {'bicubic': 'keyscubic', 'lanczos3': 'lanczos3'}


def decode_crop(
    image: bytes | np.ndarray, box_of: Callable[[int, int], Box], reading: Reading = Reading()
) -> np.ndarray:
    """The pixels uint8 [h, w, 3], RGB, of the box `box_of(H, W)` of an image of H x W pixels.

    Greyscale is repeated, CMYK converted, a palette looked up and alpha dropped, as by Pillow's
    convert('RGB'). EXIF orientation is ignored, as torchvision's ImageFolder ignores it, but where
    `reading.exif` asks for it. Of a JPEG only the box is decoded then. What is neither JPEG nor PNG
    is decoded by Pillow.

    Args:
      image: a file, or uint8 [H, W, 3].

    Raises:
      BadImageError: what `read.decode` refuses, or a side below 8 pixels.
    """
    if isinstance(image, np.ndarray):
        return crop(image, box_of)
    if reading.exif:
        pixels = decode_crop(image, whole_box, reading._replace(exif=False))
        return crop(upright(pixels, image, reading), box_of)
    try:
        if is_jpeg(image):
            contents = tf.constant(image)
            height, width, _ = tf.image.extract_jpeg_shape(contents).numpy().tolist()
            check_pixels(height, width, reading.max_pixels)
            return tf.image.decode_and_crop_jpeg(
                contents, box_inside(box_of, height, width), channels=3, dct_method=_DCT
            ).numpy()
        if not is_png(image):
            return crop(decode(image, reading), box_of)
        check_pixels(*png_size(image), reading.max_pixels)
        return crop(tf.image.decode_png(image, channels=3).numpy(), box_of)
    except tf.errors.InvalidArgumentError as error:
        raise BadImageError('truncated or damaged') from error


def resize(
    pixels: np.ndarray,
    views: Sequence[View],
    shape: tuple[int, int] | None = None,
    box: FloatBox | None = None,
) -> list[np.ndarray]:
    """uint8 [H, W, 3] -> uint8 [height, width, 3], or of `shape`, for each view, antialiased as by
    Pillow; pixels of that size come out as they went in.

    Args:
      box: what is shown; the pixels around it have a part in those at its edge. None: all.
    """
    whole = (0, 0, *pixels.shape[:2])
    shapes, box = [shape or view.sides for view in views], box or whole
    return [
        pixels if box == whole == (0, 0, *shape) else _resize(pixels, shape, view.method, box)
        for shape, view in zip(shapes, views)
    ]


def _resize(pixels, shape, method, box):
    # what tf.image.resize does, without its casts of the whole image
    scale = [new / side for new, side in zip(shape, box[2:])]
    resized = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=shape,
        scale=scale,
        translation=[-start * each for start, each in zip(box, scale)],
        kernel_type=_KERNELS[method],
        antialias=True,
    )
    return np.rint(resized[0].numpy()).clip(0, 255).astype(np.uint8)
