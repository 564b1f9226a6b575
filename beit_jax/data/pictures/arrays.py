"""Pictures of any number of channels, of 8 or 16 bits: what a file holds, as it is, and its
resizing. RGB of 8 bits has ways of its own (`decode_simd`). No TensorFlow."""

from collections.abc import Callable, Sequence
import io
import math
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
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from beit_jax.data.config import MAX_PIXELS, PixelFormat, Reading, View
from beit_jax.data.pictures.boxes import (
    BadImageError,
    Box,
    FloatBox,
    FormatError,
    check_pixels,
    crop,
)
from beit_jax.data.pictures.read import PARSER_ERRORS, opened

_NPY, _TIFF, _PNG = b'\x93NUMPY', (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'), b'\x89PNG'
_KERNELS = {
    'bicubic': FilterType.catmull_rom,
    'bilinear': FilterType.bilinear,
    'lanczos3': FilterType.lanczos3,
}
_TYPES = {'uint8': PixelType.U8, 'uint16': PixelType.U16, 'float32': PixelType.F32}
_MODES = ('L', 'LA', 'RGB', 'RGBA', 'CMYK')
_AS = {'1': 'L', 'P': 'RGB', 'PA': 'RGBA'}  # what Pillow makes of other modes
_own = threading.local()  # a resizer keeps buffers, so each thread has one


class ArrayOps:
    """`decode_crop` and `resize`, as those of `decode_tensorflow`, for pictures of one format."""

    def __init__(self, pixels: PixelFormat):
        self._pixels = pixels

    def decode_crop(
        self,
        image: bytes | np.ndarray,
        box_of: Callable[[int, int], Box],
        reading: Reading = Reading(),
    ) -> np.ndarray:
        """The box `box_of(H, W)` of what `decode` gives, [h, w, C]."""
        return crop(decode(image, self._pixels, reading.max_pixels), box_of)

    def resize(
        self,
        pixels: np.ndarray,
        views: Sequence[View],
        shape: tuple[int, int] | None = None,
        box: FloatBox | None = None,
    ) -> list[np.ndarray]:
        """[H, W, C] -> [height, width, C] of each view, or of `shape`."""
        return [resize(pixels, shape or view.sides, view.method, box) for view in views]


def resize(
    pixels: np.ndarray, shape: tuple[int, int], method: str = 'bicubic', box: FloatBox | None = None
) -> np.ndarray:
    """[H, W, C], uint8, uint16 or float32, -> the same of `shape`, antialiased as by Pillow,
    channel by channel; pixels of that size come out as they went in.

    Args:
      box: what is shown; the pixels around it have a part in those at its edge. None: all.
    """
    if not hasattr(_own, 'resizer'):
        _own.resizer = Resizer()
    height, width, channels = pixels.shape
    kind, made = _TYPES[pixels.dtype.name], np.empty((*shape, channels), pixels.dtype)
    options = ResizeOptions(ResizeAlg.convolution(_KERNELS[method]), use_alpha=False)
    if box:
        top, left, box_height, box_width = box
        options.crop_box = CropBox(left, top, box_width, box_height)
    for channel in range(channels):
        source = ImageData(width, height, kind, pixels[..., channel].tobytes())
        target = ImageData(shape[1], shape[0], kind)
        _own.resizer.resize(source, target, options)
        made[..., channel] = np.frombuffer(target.get_buffer(), pixels.dtype).reshape(shape)
    return made


def decode(
    image: bytes | np.ndarray | Image.Image, pixels: PixelFormat, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The channels `pixels.bands` of a picture, [H, W, C] of `pixels.dtype`, which are not
    converted.

    Args:
      image: an array of NumPy, [H, W, C] or [H, W], or the .npy file of one; a TIFF file, whose
        pages are channels where it has several; or what `read.opened` takes, or gives.

    Raises:
      FormatError: other channels or bits than `pixels` says.
      BadImageError: a damaged file, or more pixels than `max_pixels`.
    """
    array = image if isinstance(image, np.ndarray) else _array(image, pixels, max_pixels)
    array = array[..., None] if array.ndim == 2 else array
    promised = f'config.data.channels={pixels.channels} and config.data.bits={pixels.bits}'
    if array.dtype not in (np.uint8, np.uint16):
        raise FormatError(f'values of {array.dtype}: 8 or 16 bits without sign are read')
    if array.ndim != 3 or array.shape[2] != pixels.channels:
        what = f'{array.shape[2]} channels' if array.ndim == 3 else 'not [H, W, channels]'
        raise FormatError(f'an array of shape {array.shape}: {what}, not {promised}')
    if array.dtype != pixels.dtype:
        raise FormatError(f'{8 * array.itemsize} bits a value, not {promised}')
    return array[..., list(pixels.bands)] if pixels.bands else array


def _array(image: bytes | Image.Image, pixels: PixelFormat, max_pixels: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    if image.startswith(_NPY):
        return read_npy(image, max_pixels)
    if image.startswith(_TIFF):
        return _tiff(image, pixels, max_pixels)
    if image.startswith(_PNG) and image[24:25] == b'\x10' and image[25:26] != b'\0':
        raise FormatError('a PNG of 16 bits in colour, which Pillow reads as 8: save it as .npy')
    with opened(image, Reading(max_pixels)) as picture:
        return _of_pillow(picture)


def read_npy(file: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The array in a .npy file, of which nothing is run; none of objects.

    Raises:
      BadImageError: no such file, damaged, cut off, or of more pixels than `max_pixels`.
    """
    header = io.BytesIO(file)
    try:
        version = np.lib.format.read_magic(header)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
    except Exception as error:  # of all kinds, by NumPy's parser of the header
        raise BadImageError(f'no array of numbers: {str(error)[:100]}') from error
    if dtype.hasobject or dtype.names or not 2 <= len(shape) <= 3:
        raise FormatError(f'an array of shape {shape} and type {dtype}: not [H, W, channels]')
    check_pixels(*shape[:2], max_pixels)
    start, size = header.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or len(file) - start != size:
        raise BadImageError(
            f'{len(file) - start:,} bytes of numbers where its header says {size:,}'
        )
    array = np.frombuffer(file, dtype, offset=start).reshape(shape, order='CF'[fortran])
    return array.astype(dtype.newbyteorder('='), copy=False)


def _tiff(image: bytes, pixels: PixelFormat, max_pixels: int) -> np.ndarray:
    try:
        with TiffImageFile(io.BytesIO(image)) as picture:
            check_pixels(picture.height, picture.width, max_pixels)
            pages = picture.n_frames
            if pages not in (1, pixels.channels):
                raise FormatError(f'{pages} pages, not config.data.channels={pixels.channels}')
            channels = []
            for page in range(pages):
                picture.seek(page)
                check_pixels(picture.height, picture.width, max_pixels)
                bits = picture.tag_v2.get(BITSPERSAMPLE, (1,))
                if max(bits) > 8 and len(bits) > 1:
                    raise FormatError(
                        f'a TIFF of {len(bits)} x {max(bits)} bits a pixel, which Pillow does not '
                        'read: save each channel as a page, or all as .npy'
                    )
                channels.append(_of_pillow(picture))
    except BadImageError:
        raise
    except PARSER_ERRORS as error:
        raise BadImageError(
            f'a TIFF that Pillow cannot read ({error}): damaged, or of several samples a pixel; '
            'save each channel as a page, or all as .npy'
        ) from error
    if len(channels) == 1:
        return channels[0]
    if any(one.shape != channels[0].shape or one.ndim != 2 for one in channels):
        raise FormatError('pages of several sizes or colours: each has to be one channel')
    return np.stack(channels, axis=2)


def _of_pillow(picture: Image.Image) -> np.ndarray:
    """[H, W] or [H, W, C], uint8 or uint16, of a Pillow image."""
    if picture.mode.startswith('I;16') or (picture.mode == 'I' and picture.format == 'PNG'):
        return np.asarray(picture).astype(np.uint16)
    mode = _AS.get(picture.mode, picture.mode)
    if mode not in _MODES:
        raise FormatError(f'a picture of mode {picture.mode}, not of 8 or 16 bits a channel')
    return np.asarray(picture.convert(mode) if mode != picture.mode else picture)
