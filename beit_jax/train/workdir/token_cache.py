"""Tokens kept between epochs. Where views repeat every K epochs (`config.data.repeat_views`), an
image has only K grids of tokens: once all are known, the tokenizer need not run, nor the host make
its pictures.

One directory holds, for each process, all tokens of all images, so that any process can read any
row: `ids-PROCESS.npy`, uint16 [K * N, P], row = number of the view; and `ids-PROCESS.json`: of
which data, crops and tokenizer they are, and which rows are filled.
"""

import json
from pathlib import Path

import jax
from jax.experimental import multihost_utils
import numpy as np

from beit_jax import whole_files
from beit_jax.errors import RequestError, check


class TokenCache:
    """Filled by the steps from position `since` of the run on; from position `complete_at` on every
    row is known."""

    def __init__(
        self,
        directory: Path,
        fingerprint: dict,
        examples: int,
        views: int,
        tokens: int,
        position: int,
    ):
        """`position`: of the run's next example, step * batch size. `tokens`: P.

        Raises:
          RequestError: the directory holds tokens of other data, other crops or another tokenizer,
            or cannot be written.
        """
        self._fingerprint, self._pending = fingerprint, None
        self._file, self._json = (
            directory / f'ids-{jax.process_index():05}.{suffix}' for suffix in ('npy', 'json')
        )
        shape, state = (views * examples, tokens), self._read_state()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if state is None:
                self._json.unlink(missing_ok=True)  # never a record of rows that are gone
                self._ids = np.lib.format.open_memmap(self._file, 'w+', np.uint16, shape)
            else:
                self._ids = np.lib.format.open_memmap(self._file, 'r+')
        except OSError as error:
            raise RequestError(
                f'the token cache {directory} cannot be written: {error.strerror}.'
            ) from error
        except ValueError as error:
            raise RequestError(f'{self._file} is damaged ({error}): remove {directory}.') from error
        check(
            self._ids.shape == shape,
            f'{self._file} has shape {self._ids.shape}, not {shape}: remove {directory}.',
        )
        self._filled = state['filled'] if state else 0
        # rows that were written after the last flush, or by nobody, are not known: then everything
        # is computed anew from here
        self._since = state['since'] if state and self._filled >= position else position
        epoch = 0 if state and state['complete'] else -(-self._since // examples) + views
        if jax.process_count() > 1:  # all processes go over to the cache at the same step
            epoch = int(multihost_utils.process_allgather(np.array([epoch], np.int32)).max())
        self.complete_at = epoch * examples
        self._write_state()  # from now on a run on other data is refused

    def complete_from(self, batch_size: int) -> int:
        """The number of steps after which every row is known."""
        return -(-self.complete_at // batch_size)

    def _read_state(self) -> dict | None:
        if not (self._json.is_file() and self._file.is_file()):
            return None
        try:
            state = json.loads(self._json.read_text())
            saved = dict(state['fingerprint'])
            int(state['filled']), int(state['since']), bool(state['complete'])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f'{self._json} is damaged: remove {self._json.parent}.') from error
        differing = whole_files.differences(saved, self._fingerprint)
        check(
            not differing,
            f'the token cache {self._json.parent} is of other data, crops or another tokenizer '
            f'({"; ".join(differing[:3])}): give another config.tokenizer.cache_path, or remove '
            'it.',
        )
        return state

    def put(self, views_B: jax.Array, tokens_BP: jax.Array) -> None:
        """Keeps tokens (uint16) of the views of a global batch, both on all devices; they are
        fetched when the next ones come."""
        self._write_pending()
        self._pending = (views_B, tokens_BP)

    def _write_pending(self):
        if self._pending is not None:
            views_B, tokens_BP = jax.device_get(self._pending)
            self._ids[views_B] = tokens_BP
            self._pending = None

    def read(self, views: np.ndarray) -> np.ndarray:
        """uint32 [R] -> uint16 [R, P]."""
        self._write_pending()
        return self._ids[views]

    def flush(self, position: int) -> None:
        """Puts on disk what the positions before `position` gave."""
        self._write_pending()
        self._ids.flush()
        self._filled = max(self._filled, position)
        self._write_state()

    def _write_state(self):
        whole_files.write(
            self._json,
            {
                'fingerprint': self._fingerprint,
                'since': self._since,
                'filled': self._filled,
                'complete': self._filled >= self.complete_at,
            },
        )
