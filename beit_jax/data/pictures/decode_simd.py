"""What `decode_tensorflow` does, several times as fast: simplejpeg (libjpeg-turbo) decodes,
cykooz_resizer (fast_image_resize) resizes.

JPEG files are decoded as by TensorFlow, bit for bit but for the edge of a crop, of which TensorFlow
does not decode what is beyond; what simplejpeg does not take, by Pillow, bit for bit too. Resizing
computes with integers, so that it gives the same on every processor. Needs no TensorFlow.
"""

from collections.abc import Callable, Sequence
import threading

from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)
import numpy as np
import simplejpeg

from beit_jax.data.config import Reading, View
from beit_jax.data.pictures.boxes import Box, FloatBox, check_pixels, crop, is_jpeg
from beit_jax.data.pictures.read import decode, upright

_FILTERS = {'bicubic': FilterType.catmull_rom, 'lanczos3': FilterType.lanczos3}
_OPTIONS = {
    method: ResizeOptions(ResizeAlg.convolution(kind), use_alpha=False)
    for method, kind in _FILTERS.items()
}
_own = threading.local()  # a resizer keeps buffers, so each thread has one


def decode_crop(
    image: bytes | np.ndarray, box_of: Callable[[int, int], Box], reading: Reading = Reading()
) -> np.ndarray:
    """As `decode_tensorflow.decode_crop`."""
    if isinstance(image, np.ndarray):
        return crop(image, box_of)
    if is_jpeg(image):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
            check_pixels(height, width, reading.max_pixels)
            if colors in ('YCbCr', 'Gray', 'RGB'):
                pixels = simplejpeg.decode_jpeg(image)
                return crop(upright(pixels, image, reading), box_of)
        except ValueError:  # damage, which is not always fatal: one decoder judges for both
            pass
    # no JPEG, or CMYK, which is converted in different ways
    return crop(decode(image, reading), box_of)


def resize(
    pixels: np.ndarray,
    views: Sequence[View],
    shape: tuple[int, int] | None = None,
    box: FloatBox | None = None,
) -> list[np.ndarray]:
    """As `decode_tensorflow.resize`, by Pillow's integer arithmetic."""
    if not hasattr(_own, 'resizer'):
        _own.resizer = Resizer()
    source = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    shapes = [shape or view.sides for view in views]
    made = [ImageData(width, height, PixelType.U8x3) for height, width in shapes]
    for view, target in zip(views, made):
        options = _OPTIONS[view.method]
        if box:
            top, left, height, width = box
            options = options.copy()
            options.crop_box = CropBox(left, top, width, height)
        _own.resizer.resize(source, target, options)
    return [
        np.frombuffer(target.get_buffer(), np.uint8).reshape(*shape, 3)
        for shape, target in zip(shapes, made)
    ]
