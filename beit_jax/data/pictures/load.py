"""Pictures for the tools: a folder, a file, or a .npy array, as one array of the size that a model
takes. No TensorFlow.

`pixels` says what the pictures are, as for training; C is the number of channels that it reads.
"""

from collections.abc import Callable, Iterator
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from beit_jax.data.config import PixelFormat, Reading, View, sides
from beit_jax.data.pictures.boxes import FloatBox, center_box, whole_box
from beit_jax.data.pictures.decode import array_ops
from beit_jax.data.pictures.read import read_image, rgb
from beit_jax.data.stores import storage
from beit_jax.data.stores.listing import Listing
from beit_jax.errors import RequestError, check, shown

# gets the name of a picture that cannot be read and why, and leaves it out or raises that
LeaveOut = Callable[[str, RequestError], None]


def load_images(
    path: str,
    size: int | tuple[int, int],
    limit: int | None = None,
    crop: float = 1.0,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
) -> tuple[np.ndarray, list[str]]:
    """All pictures of `image_batches` at once: ([B, height, width, C], names)."""
    pictures, names = zip(*image_batches(path, size, 64, limit, crop, leave_out, reading))
    return np.concatenate(pictures), [name for batch in names for name in batch]


def image_batches(
    path: str,
    size: int | tuple[int, int],
    batch_size: int,
    limit: int | None = None,
    crop: float = 1.0,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
    first: int = 0,
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Reads pictures: the central box of each (`center_box`) at `size`, bicubic, antialiased.

    Args:
      path: a folder (its files are those that training lists, in that order), an image file, or a
        .npy array [B, H, W, C], uint8 or float in [0, 1]; an array that has the size already is
        taken as it is. Of other pixels than RGB also the .npy file of one picture.
      size: side of the result in pixels, or height and width.
      batch_size: pictures that are read at a time.
      limit: read at most so many.
      crop: side of the square over the shorter side of the picture.
      leave_out: told of pictures that cannot be read; None: the first ends it.
      reading: which files are read, and how, as training did.
      first: of an array, where to begin; the `limit` counts from 0.

    Yields:
      ([B, height, width, C], names as they can be printed): uint8 or uint16; of a float array
        float32 in [0, 1].

    Raises:
      RequestError: nothing there, or nothing that is an image.
    """
    pictures = whole_images(path, limit, leave_out, reading, first)

    def fitted(picture):
        untouched = Path(path).suffix == '.npy' and picture.shape[:2] == sides(size)
        return square(picture, size, 1.0 if untouched else crop, reading.pixels)

    while chunk := list(itertools.islice(pictures, batch_size)):
        yield np.stack([fitted(picture) for picture, _ in chunk]), [name for _, name in chunk]


def whole_images(
    path: str,
    limit: int | None = None,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
    first: int = 0,
) -> Iterator[tuple[np.ndarray, str]]:
    """(picture [H, W, C], name) of each of what `image_batches` takes, of its own size."""
    if Path(path).suffix == '.npy':
        for number, picture in enumerate(_array(path, first, limit, reading.pixels), first):
            yield picture, f'{shown(Path(path).name)}[{number}]'
        return
    read = 0
    for file in image_files(path, reading):
        try:
            picture = read_picture(file, reading)
        except RequestError as error:
            if leave_out is None:
                raise
            leave_out(shown(file), error)
            continue
        yield picture, shown(file)
        read += 1
        if read == limit:
            return
    check(read > 0, f'--images={shown(path)}: none of its pictures can be read.')


def read_picture(
    image: str | Path | np.ndarray | Image.Image, reading: Reading = Reading()
) -> np.ndarray:
    """[H, W, C] of a picture or its file.

    Raises:
      RequestError: it cannot be read, or is not what training could use; names the file.
    """
    if reading.pixels.is_rgb:
        return rgb(image) if isinstance(image, Image.Image) else read_image(str(image), reading)
    is_path = isinstance(image, (str, Path))
    name = shown(str(image)) if is_path else 'a picture'
    try:
        content = storage.read(str(image)) if is_path else image
        return array_ops(reading.pixels).decode_crop(content, whole_box, reading)
    except OSError as error:
        raise RequestError(
            f'{name} cannot be read as an image: {error.strerror or error}.'
        ) from error


def image_files(path: str, reading: Reading = Reading()) -> Iterator[str]:
    """The pictures below a folder, as training lists them, or the one file."""
    kind = storage.kind(path)
    check(bool(kind), f'--images={shown(path)}: no such file or folder.')
    if kind == 'file':
        return iter([path])
    listing = Listing(path, '--images', endings=reading.listed)
    return (storage.join(path, listing.file(index)) for index in range(len(listing)))


def _array(path, first, limit, pixels):
    """The pictures in a .npy file, one by one: as they are stored, or float32 in [0, 1]."""
    what = f'--images={shown(path)}'
    check(Path(path).is_file(), f'{what}: no such file.')
    try:
        # mapped: nothing is allocated that the header promises and the file does not hold
        array = np.lib.format.open_memmap(path, mode='r')
    except Exception as error:  # of all kinds, by NumPy's parser of the header
        reason = str(error).partition('\n')[0][:100]
        raise RequestError(
            f'{what} cannot be read as an array of numbers ({reason}): write it by numpy.save.'
        ) from error
    if not pixels.is_rgb and array.ndim in (2, 3):  # one picture, as in a folder
        array = array[None] if array.ndim == 3 else array[None, ..., None]
    array = array[first:limit] if array.ndim else array
    is_float = array.dtype.kind == 'f'
    channels = pixels.num_channels if is_float else pixels.channels
    check(
        array.ndim == 4 and array.shape[3] == channels and array.size > 0,
        f'{what}: the array has shape {array.shape}, it must be [B, H, W, {channels}].',
    )
    wanted = f'give {pixels.dtype}, or float in [0, 1]'
    check(array.dtype == pixels.dtype or is_float, f'{what}: {array.dtype}; {wanted}.')
    if not is_float and pixels.is_rgb:
        return map(np.asarray, array)
    if not is_float:
        return (read_picture(np.asarray(picture), Reading(pixels=pixels)) for picture in array)
    low, high = array.min(), array.max()
    check(
        low >= 0 and high <= 1,
        f'{what}: a {array.dtype} array from {low:g} to {high:g}; {wanted}.',
    )
    return (pixels.astype(np.float32) for pixels in array)


def square(
    picture: np.ndarray,
    size: int | tuple[int, int],
    crop: float = 1.0,
    pixels: PixelFormat = PixelFormat(),
) -> np.ndarray:
    """The central box (`center_box`), of `crop` times the shorter side, of a picture [H, W, C], as
    it is stored or float32 in [0, 1], at `size`."""
    box = center_box(*picture.shape[:2], size, crop)
    return resize(picture, sides(size), 'bicubic', box, pixels)


def resize(
    picture: np.ndarray,
    shape: tuple[int, int],
    method: str,
    box: FloatBox | None = None,
    pixels: PixelFormat = PixelFormat(),
) -> np.ndarray:
    """A picture [H, W, C], as it is stored or float32 in [0, 1], or the box of it, at `shape`,
    antialiased: by Pillow, or as training resizes what is not RGB. method: bicubic | bilinear."""
    if not pixels.is_rgb and picture.dtype.kind == 'u':
        return array_ops(pixels).resize(picture, [View('', shape, method)], box=box)[0]
    top, left, height, width = box or (0, 0, *picture.shape[:2])
    kernel, edges = Image.Resampling[method.upper()], (left, top, left + width, top + height)

    def resized(part):
        return np.asarray(Image.fromarray(part).resize(shape[::-1], kernel, edges))

    if picture.dtype == np.uint8:
        return resized(picture)
    return np.stack([resized(channel) for channel in np.moveaxis(picture, 2, 0)], 2).clip(0, 1)
