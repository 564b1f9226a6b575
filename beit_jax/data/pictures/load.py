"""Pictures for the tools: a folder, a file, or a .npy array, as one array of the size that a model
takes. No TensorFlow."""

from collections.abc import Iterator
import itertools
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from beit_jax.errors import RequestError, check

SUFFIXES = ('.jpg', '.jpeg', '.png')


def load_images(
    path: str, size: int, limit: int | None = None, crop: float = 1.0
) -> tuple[np.ndarray, list[str]]:
    """All pictures of `image_batches` at once: (uint8 [B, size, size, 3], names)."""
    pictures, names = zip(*image_batches(path, size, 64, limit, crop))
    return np.concatenate(pictures), [name for batch in names for name in batch]


def image_batches(
    path: str, size: int, batch_size: int, limit: int | None = None, crop: float = 1.0
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Reads pictures: the central square of each at size x size pixels, bicubic, antialiased.

    Args:
      path: a folder (searched in sorted order), an image file, or a .npy array [B, H, W, 3], uint8
        or float in [0, 1]; an array that has the size already is not resampled.
      size: side of the result in pixels.
      batch_size: pictures that are read at a time.
      limit: read at most so many.
      crop: side of the square over the shorter side of the picture.

    Yields:
      (uint8 [B, size, size, 3], names).

    Raises:
      RequestError: nothing there, or not an image.
    """
    pictures = whole_images(path, limit)

    def squared(image):
        untouched = Path(path).suffix == '.npy' and image.size == (size, size)
        return square(image, size, 1.0 if untouched else crop)

    while chunk := list(itertools.islice(pictures, batch_size)):
        yield np.stack([squared(image) for image, _ in chunk]), [name for _, name in chunk]


def whole_images(path: str, limit: int | None = None) -> Iterator[tuple[Image.Image, str]]:
    """(picture, name) of each of what `image_batches` takes, of its own size, RGB."""
    root = Path(path)
    check(root.exists(), f'--images={path}: no such file or folder.')
    if root.suffix != '.npy':
        files = [root]
        if root.is_dir():
            files = sorted(file for file in root.rglob('*') if file.suffix.lower() in SUFFIXES)
        check(bool(files), f'--images={path}: no {", ".join(SUFFIXES)} file in it.')
        yield from ((read_image(file), str(file)) for file in files[:limit])
        return
    try:
        array = np.load(root)[:limit]
    except (ValueError, EOFError, IndexError) as error:
        raise RequestError(
            f'--images={path} cannot be read as an array of numbers ({error}).'
        ) from error
    check(
        array.ndim == 4 and array.shape[3] == 3 and array.size > 0,
        f'--images={path}: the array has shape {array.shape}, it must be [B, H, W, 3].',
    )
    if array.dtype != np.uint8:
        check(
            array.dtype.kind == 'f' and array.min() >= 0 and array.max() <= 1,
            f'--images={path}: a {array.dtype} array from {array.min():g} to {array.max():g}; give '
            'uint8, or float in [0, 1].',
        )
        array = np.rint(array * 255).astype(np.uint8)
    for number, image in enumerate(array):
        yield Image.fromarray(image), f'{root.name}[{number}]'


def read_image(file: Path) -> Image.Image:
    """The picture in a file, RGB.

    Raises:
      RequestError: it is no image.
    """
    try:
        with Image.open(file) as image:
            return image.convert('RGB')
    except (UnidentifiedImageError, OSError) as error:
        raise RequestError(f'{file} cannot be read as an image ({error}).') from error


def square(image: Image.Image, size: int, crop: float = 1.0) -> np.ndarray:
    """uint8 [size, size, 3]: the central square, of `crop` times the shorter side, of a picture."""
    side = max(1, round(crop * min(image.size)))
    if image.size == (size, size) == (side, side):
        return np.asarray(image)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = left, top, left + side, top + side
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
