"""A file of the tokens of many pictures, one row a picture, that grows batch by batch: killed and
started again, it goes on."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from beit_jax import whole_files
from beit_jax.errors import RequestError, check
from beit_jax.images.color import to_float
from beit_jax.inference.pictures import Pictures
from beit_jax.inference.rows import RowFile
from beit_jax.train.sharding import batch_sharding, replicated


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
            self._ids = RowFile(self._partial, np.uint16, (rows, tokens))
            self._ids.allocate()

    def _reopen(self, tokens: int) -> RowFile:
        """The rows of a file that is not complete."""
        message = f'{self._partial} or {self._progress} is damaged: remove both.'
        numbers = [self.done, *self.bad] if type(self.bad) is list else [None]
        check(all(type(one) is int and 0 <= one <= self.rows for one in numbers), message)
        ids = RowFile(self._partial, np.uint16, (self.rows, tokens))
        try:  # a file that was cut short would be filled up with 0
            ids.check()
        except ValueError as error:
            raise RequestError(message) from error
        return ids

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
        self._ids.write(self.done, ids_RP)
        self.done, self.bad = self.done + len(ids_RP), self.bad + bad
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
    for made in pictures.read(missing, batch):
        count = min(batch, export.rows - export.done)
        ids_RP, readable_R = np.asarray(encode(params, made['image'])), made['valid'][:count] > 0
        ids_RP, bad = ids_RP[:count], []
        for row in np.flatnonzero(~readable_R):
            bad.append(export.done + int(row))
            pictures.tell_unreadable(first + bad[-1], 'its tokens are 0', strict)
        export.write(np.where(readable_R[:, None], ids_RP, 0), bad)
        progress.update(count)
    progress.close()
    export.finish()
