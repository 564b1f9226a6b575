"""The pictures that a tool goes through from first to last, any part of them at a time."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
from pathlib import Path
import sys

import numpy as np

from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig, PixelFormat, Reading, sides
from beit_jax.data.parallel import Batch
from beit_jax.data.pictures.load import image_batches
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import StorageError, check
from beit_jax.whole_files import sha256


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is gone through."""

    count: int
    name: Callable[[int], str]
    description: dict  # what they are, for the record beside what is made of them
    # (indices, B) -> batches of these pictures in order, of one size: `image` [B, H, W, channels],
    # `label` [B], and `valid` [B], 0 for those that cannot be read and for what fills up the last
    read: Callable[[np.ndarray, int], Iterator[Batch]]
    classes: tuple[str, ...] = ()  # label -> name

    def tell_unreadable(self, index: int, instead: str, strict: bool) -> None:
        """Names on stderr a picture that cannot be read, and what is there `instead` of what would
        be made of it.

        Raises:
          RequestError: it is `strict`.
        """
        line = f'{self.name(index)} (image {index}) cannot be read'
        check(not strict, f'{line}: repair or remove it, or leave --strict out.')
        print(f'warning: {line}; {instead}', file=sys.stderr)


def pictures_of_path(
    path: str, size: int | tuple[int, int], form: PixelFormat = PixelFormat()
) -> Pictures:
    """The pictures of a folder, a file or a .npy array (see `image_batches`), held in memory."""
    names, squares = [], []

    def leave_out(name, error):
        names.append(name)
        squares.append(None)

    reading = Reading(pixels=form)
    # one, for the order
    for pixels, some in image_batches(path, size, 1, leave_out=leave_out, reading=reading):
        names += some
        squares += [*pixels]
    readable = np.array([pixels is not None for pixels in squares])
    black = np.zeros((*sides(size), form.num_channels), form.dtype)
    images = np.stack([black if pixels is None else pixels for pixels in squares])

    def read(indices, batch):
        for start in range(0, len(indices), batch):
            chosen = indices[start : start + batch]
            yield _filled(images[chosen], readable[chosen], batch)

    data = hashlib.sha256(images.tobytes()).hexdigest()
    return Pictures(len(images), names.__getitem__, {'data': data}, read)


def pictures_of_array(path: str, size: int | tuple[int, int], crop: float, reading: Reading):
    """The pictures of a .npy array as `image_batches` takes it, which stays on disk; indices are
    those of neighbours.

    Raises:
      RequestError: it is none.
    """
    next(image_batches(path, size, 1, 1, crop, reading=reading))  # refuses what is none
    count = len(np.load(path, mmap_mode='r'))

    def read(indices, batch):
        first, last = int(indices[0]), int(indices[-1])
        for images, _ in image_batches(path, size, batch, last + 1, crop, None, reading, first):
            yield _filled(images, np.ones(len(images), bool), batch)

    name = f'{Path(path).name}[{{}}]'.format
    return Pictures(count, name, {'data': sha256(Path(path))}, read)


def _check_there(source: Source, data: DataConfig) -> None:
    """Raises StorageError where most pictures cannot be read, which could be at the start."""
    some = spread(source, pipeline.CHECKED)
    bad = [source.name(index) for index in some if pipeline.flaw(source, index, data)]
    if 2 * len(bad) > len(some):
        raise StorageError(
            f'{len(bad)} of {len(some)} pictures looked at cannot be read now, {bad[0]} the first. '
            f'{pipeline.AWAY}'
        )


def _filled(images: np.ndarray, readable: np.ndarray, batch: int) -> Batch:
    missing = batch - len(images)
    return {
        'image': np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        'label': np.zeros(batch, np.int32),
        'valid': np.pad(readable, (0, missing)).astype(np.float32),
    }


def pictures_of_data(data: DataConfig, part: str, resampling: str = 'lanczos3') -> Pictures:
    """The central square of each image of a data set's `part`, 'train' or 'evaluate'.

    `read` raises StorageError where the storage is away: no picture is taken for a bad one then.

    Raises:
      RequestError: there is none, or what is there cannot be read.
    """
    source, crop = open_source(data, part), data.evaluate_crop
    check(
        source is not None,
        'there are no held-out images: set --data.evaluate_path, --data.evaluate_split or '
        '--data.holdout.',
    )
    pipeline.check_source(source, data)

    def read(indices, batch):
        views, rows = (data.view('image', 0, resampling),), np.arange(batch)
        chosen = Subset(source, indices)
        for made in pipeline.evaluate_batches(chosen, batch, views, data, rows, crop):
            if made['substituted'].any():
                _check_there(source, data)
            yield made

    description = {'data': source.fingerprint, 'crop': crop}
    if not data.pixels.is_rgb:
        description['pixels'] = json.loads(json.dumps(dataclasses.asdict(data.pixels)))
    return Pictures(len(source), source.name, description, read, source.class_names)
