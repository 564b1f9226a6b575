"""The pixels of a whole picture as training sees them, without TensorFlow: for tools,
`beit_jax.load`, annotations, and whatever is no JPEG."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import importlib
import io
import math
import re
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from beit_jax.data.config import ENDINGS, Reading
from beit_jax.data.pictures.boxes import (
    BadImageError,
    check_pixels,
    crop,
    is_jpeg,
    is_png,
    png_size,
    whole_box,
)
from beit_jax.data.stores import storage
from beit_jax.errors import RequestError, check, shown

_DAMAGED = 'truncated or damaged'
# what Pillow's parsers raise, which take a damaged file at its word
PARSER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error,
    ArithmeticError, RuntimeError, MemoryError, AttributeError,
)  # fmt: skip
_CRITICAL, _EXIF = (b'IHDR', b'PLTE', b'IDAT', b'IEND'), b'eXIf'  # chunks of a PNG
_ORIENTATION = 0x0112  # in EXIF
# how the rows and columns of a picture of this orientation are put right
_TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}
# of a JPEG file: any, and one that ends the data of a scan
_MARKER, _SCAN_END = re.compile(rb'\xff+[^\x00\xff]'), re.compile(rb'\xff+[\xc0-\xcf\xd8-\xfe]')
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment, which mean nothing there
# segments of applications and comments; of them JFIF and Adobe tell the colours where they are so
# long (else libjpeg does not look at them), and there is EXIF
_TOLD, _TELLING = (*range(0xE0, 0xF0), 0xFE), {0xE0: 16, 0xE1: 2, 0xEE: 14}


def read_image(path: str, reading: Reading = Reading()) -> np.ndarray:
    """The picture in a file, uint8 [H, W, 3]: see `decode`.

    Raises:
      RequestError: it cannot be read, or is no image that training could use; names the file.
    """
    try:
        return decode(storage.read(path), reading)
    except OSError as error:
        raise RequestError(
            f'{shown(path)} cannot be read as an image: {error.strerror or error}.'
        ) from error


def decode(image: bytes, reading: Reading = Reading()) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of a file of one of the formats of `reading.endings`, of several
    pictures the first: a JPEG or PNG bit for bit as TensorFlow decodes it.

    Raises:
      BadImageError: another kind of file, a damaged one, more pixels than `reading.max_pixels`, a
        side below 8 pixels, or values whose range nobody knows.
    """
    with opened(image, reading) as picture:
        try:
            pixels = rgb(picture)
        except RequestError as error:
            raise BadImageError(f'its values are {picture.mode}, of no known range') from error
        if reading.exif:
            pixels = _turned(pixels, orientation_of(picture))
    return crop(pixels, whole_box)  # which refuses a side below 8 pixels


@contextlib.contextmanager
def opened(image: bytes, reading: Reading = Reading()) -> Iterator[Image.Image]:
    """A file as a Pillow image, of which only the header is read yet; what Pillow raises of it
    inside is a BadImageError.

    By the classes of the formats and not Image.open, which has a limit of its own, for the whole
    process, and tries formats that were not asked for (one of them runs Ghostscript).
    """
    try:
        if is_jpeg(image):
            picture = JpegImageFile(io.BytesIO(_segments(image)))
        elif is_png(image):
            check_pixels(*png_size(image), reading.max_pixels)
            picture = PngImageFile(io.BytesIO(_kept_chunks(image)))
        else:
            picture = _of_other_format(image, reading.endings)
        check_pixels(picture.height, picture.width, reading.max_pixels)
        yield picture
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(f'more pixels than Pillow takes ({error})') from error
    except PARSER_ERRORS as error:
        raise BadImageError(_DAMAGED) from error


def _of_other_format(image, endings):
    for factory, accepts in formats(endings).values():
        if accepts is None or accepts(image[:16]) is True:
            return factory(io.BytesIO(image), '')
    raise BadImageError('no image of a kind that is read')


@functools.cache
def formats(endings: tuple[str, ...]) -> dict[str, tuple[Callable, Callable | None]]:
    """Pillow's classes of the files that end so, by name, and what tells them by their beginning.

    Raises:
      RequestError: an ending that Pillow does not know, or whose files are programs.
    """
    for plugin in ('Bmp', 'Gif', 'Ppm', 'Tiff', 'WebP'):
        importlib.import_module(f'PIL.{plugin}ImagePlugin')  # tells Pillow of these
    if not set(endings) <= set(ENDINGS):
        Image.init()  # takes a second: of all others
    known = Image.registered_extensions()
    for ending in endings:
        name = known.get(ending)
        check(
            name in Image.OPEN and name != 'EPS',
            f'config.data.endings has {ending!r}, which Pillow does not read: give endings in '
            f'lower case, as {", ".join(ENDINGS[:3])}.',
        )
    return {known[ending]: Image.OPEN[known[ending]] for ending in endings}


def upright(pixels: np.ndarray, image: bytes, reading: Reading) -> np.ndarray:
    """[H, W, C] -> [H, W, C] or [W, H, C]: the picture of a file, turned as its EXIF says where
    `reading.exif` asks for it."""
    return _turned(pixels, orientation(image, reading)) if reading.exif else pixels


def _turned(pixels, number):
    turn = _TURNS.get(number)
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def orientation(image: bytes, reading: Reading = Reading()) -> int:
    """`orientation_of` a file."""
    with opened(image, reading) as picture:
        return orientation_of(picture)


def orientation_of(picture: Image.Image) -> int:
    """What EXIF says, 1 to 8; 1, upright, also of a TIFF, which is turned as it is read, and where
    it says nothing or nonsense. Of a PNG without it the pixels are not decoded."""
    if picture.format == 'TIFF' or (picture.format == 'PNG' and 'exif' not in picture.info):
        return 1
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except PARSER_ERRORS:
        return 1


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
            image.mode != 'I'
            or image.format == 'PPM'
            or (low >= 0 and (255 < high < 65536 or high == 0)),
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


def _segments(jpeg: bytes) -> bytes:
    """A JPEG file up to its end, without what does not make its pixels, or stands between segments:
    it may be broken, and Pillow would refuse it then; libjpeg, as training has it, does not. It
    refuses a segment that is cut off, which Pillow takes once the picture is complete."""
    kept, start = [jpeg[:2]], 2
    while found := _MARKER.search(jpeg, start):
        marker, start = jpeg[found.end() - 1], found.end()
        if marker == _EOI:
            return b''.join([*kept, jpeg[start - 2 : start]])
        if marker in _ALONE:
            continue
        length = 0 if marker == _SOI else max(2, int.from_bytes(jpeg[start : start + 2]))
        end = start + length
        if marker == _SOS and (scan := _SCAN_END.search(jpeg, end)):
            end = scan.start()
        if marker not in _TOLD or length >= _TELLING.get(marker, math.inf):
            kept.append(jpeg[start - 2 : end])
        start = end
    raise BadImageError(_DAMAGED)


def _kept_chunks(png: bytes) -> bytes:
    """A PNG file without what does not make its picture, which may be broken or large, and Pillow
    would refuse it then; libpng, as training has it, does not."""
    kept, start, kind = [png[:8]], 8, b''
    while kind != b'IEND':
        length, kind = struct.unpack_from('>I4s', png, start)
        end = start + 12 + length
        if kind in (*_CRITICAL, _EXIF):
            (checksum,) = struct.unpack_from('>I', png, end - 4)
            whole = zlib.crc32(png[start + 4 : end - 4]) == checksum
            if kind != _EXIF and not whole:
                raise BadImageError(_DAMAGED)
            if whole:  # EXIF before the pixels, so that they need not be read for it
                kept.insert(2 if kind == _EXIF else len(kept), png[start:end])
        elif not kind.isalpha() or kind[:1].isupper():
            raise BadImageError(_DAMAGED)
        start = end
    return b''.join(kept)
