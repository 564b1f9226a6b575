"""A file of the tokens of many pictures, one row a picture, that grows batch by batch: killed and
started again, it goes on."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from beit_jax import whole_files
from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig, PixelFormat, Reading, sides
from beit_jax.data.pictures.load import image_batches
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.subset import Subset
from beit_jax.errors import RequestError, check
from beit_jax.images.color import to_float
from beit_jax.train.sharding import batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is tokenized."""

    count: int
    name: Callable[[int], str]
    description: dict  # what they are, for the record beside the file
    # (indices, B) -> batches of these pictures in order, of one size: [B, H, W, channels], and [B],
    # 0 for those that cannot be read
    read: Callable[[np.ndarray, int], Iterator[tuple[np.ndarray, np.ndarray]]]


def pictures_of_path(
    path: str, size: int | tuple[int, int], form: PixelFormat = PixelFormat()
) -> Pictures:
    """The pictures of a folder, a file or a .npy array (see `image_batches`)."""
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
            missing = batch - len(chosen)
            pixels = np.pad(images[chosen], ((0, missing), (0, 0), (0, 0), (0, 0)))
            yield pixels, np.pad(readable[chosen], (0, missing))

    data = hashlib.sha256(images.tobytes()).hexdigest()
    return Pictures(len(images), names.__getitem__, {'data': data}, read)


def pictures_of_data(data: DataConfig, part: str, resampling: str = 'lanczos3') -> Pictures:
    """The central square of each image of a data set's `part`, 'train' or 'evaluate'.

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
            yield made['image'], made['valid']

    description = {'data': source.fingerprint, 'crop': crop}
    if not data.pixels.is_rgb:
        description['pixels'] = json.loads(json.dumps(dataclasses.asdict(data.pixels)))
    return Pictures(len(source), source.name, description, read)


class Export:
    """A file of tokens that grows: `OUTPUT.partial` and its progress, until all rows are there."""

    def __init__(self, path: Path, description: dict, rows: int, tokens: int):
        self.path, self.rows = path, rows
        self.description = description | {'images': rows, 'tokens': tokens}
        self._json = path.with_name(path.name + '.json')
        self._partial = path.with_name(path.name + '.partial')
        self._progress = path.with_name(path.name + '.progress')
        self.complete = path.exists()
        if self.complete:
            self._refuse_other(self._json)
        elif self._progress.exists() and self._partial.exists():
            saved = self._refuse_other(self._progress)
            self.done, self.bad = saved.get('done'), saved.get('bad')
            self._ids = self._reopen(tokens)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._progress.unlink(missing_ok=True)  # never a record of rows that are gone
            self.done, self.bad = 0, []
            self._ids = np.lib.format.open_memmap(self._partial, 'w+', np.uint16, (rows, tokens))

    def _reopen(self, tokens: int) -> np.memmap:
        """The rows of a file that is not complete."""
        message = f'{self._partial} or {self._progress} is damaged: remove both.'
        numbers = [self.done, *self.bad] if type(self.bad) is list else [None]
        check(all(type(one) is int and 0 <= one <= self.rows for one in numbers), message)
        try:  # a file that was cut short would be filled up with 0
            whole_files.rows_offset(self._partial, np.uint16, (self.rows, tokens))
        except ValueError as error:
            raise RequestError(message) from error
        return np.lib.format.open_memmap(self._partial, 'r+')

    def _refuse_other(self, file: Path) -> dict:
        """The record in a file, which must be of the same pictures and tokenizer."""
        remedy = 'remove it and what it is of'
        saved = whole_files.read_json(file, remedy) if file.exists() else {}
        differing = whole_files.differences(saved, self.description)
        check(
            not differing,
            f'{self.path} holds tokens of something else ({"; ".join(differing[:3])}): give '
            'another --output, or remove it.',
        )
        return saved

    def write(self, ids_RP: np.ndarray, bad: list[int]) -> None:
        """The next rows; `bad`: which of all rows are of images that could not be read (their
        tokens are 0)."""
        self._ids[self.done : self.done + len(ids_RP)] = ids_RP
        self.done, self.bad = self.done + len(ids_RP), self.bad + bad
        self._ids.flush()
        whole_files.write(self._progress, self.description | {'done': self.done, 'bad': self.bad})

    def finish(self) -> None:
        whole_files.write(self._json, self.description | {'bad': self.bad})
        os.replace(self._partial, self.path)
        self._progress.unlink(missing_ok=True)


def fill(
    export: Export,
    pictures: Pictures,
    first: int,
    tokenizer,
    params,
    mesh,
    batch: int,
    strict: bool = False,
) -> None:
    """Writes what is missing of an export, whose row 0 is picture `first`; `batch` pictures a call
    on all devices of the mesh. Names on stderr the pictures that cannot be read.

    Raises:
      RequestError: there is one, and it is `strict`.
    """
    encode = jax.jit(
        lambda params, pixels: tokenizer.encode(params, to_float(pixels)).astype(jnp.uint16),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
    )
    params = jax.device_put(params, replicated(mesh))
    progress = tqdm(
        total=export.rows, initial=export.done, unit='image', disable=None, dynamic_ncols=True
    )
    missing = np.arange(first + export.done, first + export.rows)
    for pixels, valid in pictures.read(missing, batch):
        count = min(batch, export.rows - export.done)
        ids_RP, readable_R = np.asarray(encode(params, pixels))[:count], valid[:count] > 0
        bad = [export.done + int(row) for row in np.flatnonzero(~readable_R)]
        for row in bad:
            line = f'{pictures.name(first + row)} (image {first + row}) cannot be read'
            check(not strict, f'{line}: repair or remove it, or leave --strict out.')
            print(f'warning: {line}; its tokens are 0', file=sys.stderr)
        export.write(np.where(readable_R[:, None], ids_RP, 0), bad)
        progress.update(count)
    progress.close()
    export.finish()
