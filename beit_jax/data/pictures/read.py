"""The pixels of a whole picture as training sees them, without TensorFlow: for tools,
`beit_jax.load` and annotations."""

from collections.abc import Iterator
import contextlib
import io
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from beit_jax.data.config import MAX_PIXELS
from beit_jax.data.pictures.boxes import BadImageError, check_pixels, is_jpeg, png_size
from beit_jax.data.stores import storage
from beit_jax.errors import RequestError, check, shown

_DAMAGED = 'truncated or damaged'
_CRITICAL = (b'IHDR', b'PLTE', b'IDAT', b'IEND')


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in a file, uint8 [H, W, 3]: see `decode`.

    Raises:
      RequestError: it cannot be read, or is no image that training could use; names the file.
    """
    try:
        return decode(storage.read(path), max_pixels)
    except OSError as error:
        raise RequestError(
            f'{shown(path)} cannot be read as an image: {error.strerror or error}.'
        ) from error


def decode(image: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of a JPEG or PNG file: bit for bit what `decode_tensorflow` gives.

    Raises:
      BadImageError: another kind of file, a damaged one, more pixels than `max_pixels`.
    """
    with opened(image, max_pixels) as picture:
        return rgb(picture)


@contextlib.contextmanager
def opened(image: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A JPEG or PNG file as a Pillow image, of which only the header is read yet; what Pillow
    raises of it inside is a BadImageError.

    The classes of the two formats and not Image.open, which knows others (one of them runs
    Ghostscript) and has a limit of its own, for the whole process.
    """
    try:
        if is_jpeg(image):
            picture = JpegImageFile(io.BytesIO(image))
            check_pixels(picture.height, picture.width, max_pixels)
        else:
            check_pixels(*png_size(image), max_pixels)
            picture = PngImageFile(io.BytesIO(_critical_chunks(image)))
        yield picture
    except BadImageError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise BadImageError(_DAMAGED) from error


def rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a Pillow image of any mode, as training reads a file that holds it: of 16
    bits the upper 8 (modes I;16 and I), alpha dropped, CMYK as TensorFlow converts it.

    Raises:
      RequestError: mode F, whose range nobody knows, or I with values that are not 16 bits.
    """
    if image.mode.startswith('I'):
        grey = np.asarray(image)
        low, high = grey.min(), grey.max()
        # 8 bits in mode I would be a black picture
        check(
            image.mode != 'I' or (low >= 0 and (255 < high < 65536 or high == 0)),
            f'a Pillow image of mode I has values from {low} to {high}, which are not 16 bits: '
            "make it 'L' or 'RGB'.",
        )
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    check(
        image.mode != 'F',
        "a Pillow image of mode F has values of no known range: make it 'L' or 'RGB'.",
    )
    if image.mode == 'CMYK':
        light = np.asarray(image).astype(np.uint16)
        # Pillow turns round what every JPEG file holds, TensorFlow where Adobe wrote it
        if image.format != 'JPEG' or 'adobe' in image.info:
            light = 255 - light
        return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
    return np.asarray(image.convert('RGB'))


def _critical_chunks(png: bytes) -> bytes:
    """A PNG file without what does not make its pixels, which may be broken or large, and Pillow
    would refuse it then; libpng, as training has it, does not."""
    kept, start, kind = [png[:8]], 8, b''
    while kind != b'IEND':
        length, kind = struct.unpack_from('>I4s', png, start)
        end = start + 12 + length
        if kind in _CRITICAL:
            (checksum,) = struct.unpack_from('>I', png, end - 4)
            if zlib.crc32(png[start + 4 : end - 4]) != checksum:
                raise BadImageError(_DAMAGED)
            kept.append(png[start:end])
        elif not kind.isalpha() or kind[:1].isupper():
            raise BadImageError(_DAMAGED)
        start = end
    return b''.join(kept)
