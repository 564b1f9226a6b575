"""Tokens kept between epochs. Where views repeat every K epochs (`config.data.repeat_views`), an
image has only K grids of tokens: once all are known, the tokenizer need not run, nor the host make
its pictures.

One directory holds, for each process, all tokens of all images, so that any process can read any
row: `ids-PROCESS.npy`, uint16 [K * N, P], row = number of the view; `ids-PROCESS.crc.npy`, uint32
[K * N], a checksum of each row, 0 where it is not known; and `ids-PROCESS.json`: of which data,
crops and tokenizer they are, and which rows are filled.
"""

import contextlib
import errno
import os
from pathlib import Path
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from beit_jax import whole_files
from beit_jax.errors import StorageError, check, of_storage


class TokenCache:
    """Filled by the steps from position `since` of the run on; from position `complete_at` on every
    row is known. Not mapped into memory: where storage fails, a read or a write says so, and a map
    would kill the process."""

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
          StorageError: there is no room for all tokens, or the storage fails.
        """
        self._fingerprint, self._pending = fingerprint, None
        self._file, self._crc_file, self._json = (
            directory / f'ids-{jax.process_index():05}.{suffix}'
            for suffix in ('npy', 'crc.npy', 'json')
        )
        self._shape = (views * examples, tokens)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            state = self._read_state()
            if state is None:
                self._create()
            self._open = os.open(self._file, os.O_RDWR)
        except OSError as error:
            message = f'the token cache {directory} cannot be written: {error.strerror}.'
            raise of_storage(error, message) from error
        self._filled = state['filled'] if state else 0
        # rows that were written after the last flush, or by nobody, are not known: then everything
        # is computed anew from here
        self._since = state['since'] if state and self._filled >= position else position
        epoch = 0 if state and state['complete'] else -(-self._since // examples) + views
        if jax.process_count() > 1:  # all processes go over to the cache at the same step
            epoch = int(multihost_utils.process_allgather(np.array([epoch], np.int32)).max())
        self.complete_at = epoch * examples
        with self._using():
            self._write_state(self._filled)  # from now on a run on other data is refused

    def complete_from(self, batch_size: int) -> int:
        """The number of steps after which every row is known."""
        return -(-self.complete_at // batch_size)

    def _read_state(self) -> dict | None:
        """What the record says, with the checksums; None where no rows can be used."""
        if not self._json.exists():
            return None
        remedy = f'remove {self._json.parent}'
        state = whole_files.read_json(self._json, remedy)
        kinds = {'fingerprint': dict, 'filled': int, 'since': int, 'complete': bool}
        check(
            all(type(state.get(name)) is kind for name, kind in kinds.items()),
            f'{self._json} is damaged: {remedy}.',
        )
        differing = whole_files.differences(state['fingerprint'], self._fingerprint)
        check(
            not differing,
            f'the token cache {self._json.parent} is of other data, crops or another tokenizer '
            f'({"; ".join(differing[:3])}): give another config.tokenizer.cache_path, or remove '
            'it.',
        )
        try:
            self._offset = whole_files.rows_offset(self._file, np.uint16, self._shape)
            start = whole_files.rows_offset(self._crc_file, np.uint32, self._shape[:1])
            self._crc = np.fromfile(self._crc_file, np.uint32, offset=start)
        except (FileNotFoundError, ValueError) as error:
            print(
                f'WARNING: the token cache {self._json.parent} is not what was written ({error}): '
                'its tokens are computed anew',
                flush=True,
            )
            return None
        return state

    def _create(self):
        self._json.unlink(missing_ok=True)  # never a record of rows that are gone
        ids = np.lib.format.open_memmap(self._file, 'w+', np.uint16, self._shape)
        self._offset, size = ids.offset, ids.offset + ids.nbytes
        self._crc = np.zeros(self._shape[0], np.uint32)
        try:
            with self._file.open('r+b') as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            self._file.unlink()
            raise

    def put(self, views_B: jax.Array, tokens_BP: jax.Array) -> None:
        """Keeps tokens (uint16) of the views of a global batch, both on all devices; they are
        fetched when the next ones come.

        Raises:
          StorageError: they cannot be written.
        """
        self._write_pending()
        self._pending = (views_B, tokens_BP)

    def _write_pending(self):
        if self._pending is None:
            return
        (views_B, tokens_BP), self._pending = jax.device_get(self._pending), None
        rows = np.ascontiguousarray(tokens_BP, np.uint16)
        with self._using():
            for view, row in zip(views_B.tolist(), rows):
                if os.pwrite(self._open, row, self._place(view)) < row.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._crc[views_B] = _checksums(views_B, rows)

    def read(self, views: np.ndarray) -> np.ndarray:
        """uint32 [R] -> uint16 [R, P].

        Raises:
          StorageError: they cannot be read, or are not those that were written; the next start then
            computes all anew.
        """
        self._write_pending()
        size = 2 * self._shape[1]
        with self._using():
            rows = [os.pread(self._open, size, self._place(view)) for view in views.tolist()]
            wrong = views[_checksums(views, rows) != self._crc[views]]
            if len(wrong):
                self._json.unlink(missing_ok=True)
                raise StorageError(
                    f'{self._file} is not what was written ({len(wrong)} of {len(views)} rows, '
                    f'{wrong[0]} among them): the same command computes its tokens anew.'
                )
        return np.frombuffer(b''.join(rows), np.uint16).reshape(-1, self._shape[1])

    def flush(self, position: int) -> list[str]:
        """Puts on disk what the positions before `position` gave; lines on why it could not."""
        self._write_pending()
        try:
            os.fsync(self._open)
            self._write_state(max(self._filled, position))
        except OSError as error:
            return [
                f'WARNING: the token cache {self._json.parent} cannot be written '
                f'({error.strerror}): make room, or a next start computes its tokens anew'
            ]
        return []

    def close(self) -> None:
        os.close(self._open)

    def _write_state(self, filled: int):
        """The checksums first: a record never tells of rows that they do not know."""
        temporary = self._crc_file.with_suffix('.new')
        with temporary.open('wb') as file:
            np.save(file, self._crc)
        os.replace(temporary, self._crc_file)
        whole_files.write(
            self._json,
            {
                'fingerprint': self._fingerprint,
                'since': self._since,
                'filled': filled,
                'complete': filled >= self.complete_at,
            },
        )
        self._filled = filled

    def _place(self, view: int) -> int:
        """Of a row in the file."""
        return self._offset + 2 * self._shape[1] * view

    @contextlib.contextmanager
    def _using(self):
        try:
            yield
        except OSError as error:
            raise StorageError(
                f'the token cache {self._json.parent} cannot be used: {error.strerror}. Mend its '
                'storage: the same command goes on.'
            ) from error


def _checksums(views, rows) -> np.ndarray:
    """uint32 [R], never 0, of the bytes of rows and the numbers of their views."""
    return np.array([zlib.crc32(row, int(view)) or 1 for view, row in zip(views, rows)], np.uint32)
