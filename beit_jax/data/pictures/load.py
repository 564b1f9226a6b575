"""Pictures for the tools: a folder, a file, or a .npy array, as one array of the size that a model
takes. No TensorFlow."""

from collections.abc import Callable, Iterator
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from beit_jax.data.config import Reading
from beit_jax.data.pictures.boxes import center_box
from beit_jax.data.pictures.read import read_image
from beit_jax.data.stores import storage
from beit_jax.data.stores.listing import Listing
from beit_jax.errors import RequestError, check, shown

# gets the name of a picture that cannot be read and why, and leaves it out or raises that
LeaveOut = Callable[[str, RequestError], None]


def load_images(
    path: str,
    size: int,
    limit: int | None = None,
    crop: float = 1.0,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
) -> tuple[np.ndarray, list[str]]:
    """All pictures of `image_batches` at once: ([B, size, size, 3], names)."""
    pictures, names = zip(*image_batches(path, size, 64, limit, crop, leave_out, reading))
    return np.concatenate(pictures), [name for batch in names for name in batch]


def image_batches(
    path: str,
    size: int,
    batch_size: int,
    limit: int | None = None,
    crop: float = 1.0,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Reads pictures: the central square of each at size x size pixels, bicubic, antialiased.

    Args:
      path: a folder (its files are those that training lists, in that order), an image file, or a
        .npy array [B, H, W, 3], uint8 or float in [0, 1]; an array that has the size already is
        taken as it is.
      size: side of the result in pixels.
      batch_size: pictures that are read at a time.
      limit: read at most so many.
      crop: side of the square over the shorter side of the picture.
      leave_out: told of pictures that cannot be read; None: the first ends it.
      reading: which files are read, and how, as training did.

    Yields:
      ([B, size, size, 3], names as they can be printed): uint8; of a float array float32 in [0, 1].

    Raises:
      RequestError: nothing there, or nothing that is an image.
    """
    pictures = whole_images(path, limit, leave_out, reading)

    def squared(pixels):
        untouched = Path(path).suffix == '.npy' and pixels.shape[:2] == (size, size)
        return square(pixels, size, 1.0 if untouched else crop)

    while chunk := list(itertools.islice(pictures, batch_size)):
        yield np.stack([squared(pixels) for pixels, _ in chunk]), [name for _, name in chunk]


def whole_images(
    path: str,
    limit: int | None = None,
    leave_out: LeaveOut | None = None,
    reading: Reading = Reading(),
) -> Iterator[tuple[np.ndarray, str]]:
    """(pixels [H, W, 3], name) of each of what `image_batches` takes, of its own size."""
    if Path(path).suffix == '.npy':
        for number, pixels in enumerate(_array(path, limit)):
            yield pixels, f'{shown(Path(path).name)}[{number}]'
        return
    read = 0
    for file in image_files(path, reading):
        try:
            pixels = read_image(file, reading)
        except RequestError as error:
            if leave_out is None:
                raise
            leave_out(shown(file), error)
            continue
        yield pixels, shown(file)
        read += 1
        if read == limit:
            return
    check(read > 0, f'--images={shown(path)}: none of its pictures can be read.')


def image_files(path: str, reading: Reading = Reading()) -> Iterator[str]:
    """The pictures below a folder, as training lists them, or the one file."""
    kind = storage.kind(path)
    check(bool(kind), f'--images={shown(path)}: no such file or folder.')
    if kind == 'file':
        return iter([path])
    listing = Listing(path, '--images', endings=reading.endings)
    return (storage.join(path, listing.file(index)) for index in range(len(listing)))


def _array(path, limit):
    """The pictures in a .npy file, one by one: uint8, or float32 in [0, 1]."""
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
    array = array[:limit] if array.ndim else array
    check(
        array.ndim == 4 and array.shape[3] == 3 and array.size > 0,
        f'{what}: the array has shape {array.shape}, it must be [B, H, W, 3].',
    )
    wanted = 'give uint8, or float in [0, 1]'
    check(array.dtype == np.uint8 or array.dtype.kind == 'f', f'{what}: {array.dtype}; {wanted}.')
    if array.dtype == np.uint8:
        return map(np.asarray, array)
    low, high = array.min(), array.max()
    check(
        low >= 0 and high <= 1,
        f'{what}: a {array.dtype} array from {low:g} to {high:g}; {wanted}.',
    )
    return (pixels.astype(np.float32) for pixels in array)


def square(pixels: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """[size, size, 3]: the central square, of `crop` times the shorter side, of a picture [H, W,
    3], uint8 or float32 in [0, 1]."""
    top, left, height, width = center_box(*pixels.shape[:2], size, crop)
    box = left, top, left + width, top + height
    return resize(pixels, (size, size), Image.Resampling.BICUBIC, box)


def resize(
    pixels: np.ndarray, shape: tuple[int, int], method: Image.Resampling, box=None
) -> np.ndarray:
    """[h, w, 3], of `shape`: a picture [H, W, 3], uint8 or float32 in [0, 1], or the box (left,
    top, right, bottom) of it, by Pillow, antialiased."""

    def resized(part):
        return np.asarray(Image.fromarray(part).resize(shape[::-1], method, box))

    if pixels.dtype == np.uint8:
        return resized(pixels)
    return np.stack([resized(channel) for channel in np.moveaxis(pixels, 2, 0)], 2).clip(0, 1)
