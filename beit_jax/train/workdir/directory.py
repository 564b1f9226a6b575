"""The work directory itself: whether it can be used."""

import contextlib
from pathlib import Path

from beit_jax.errors import check, of_storage


def check_workdir(workdir: Path) -> None:
    """Refuses what is no name of a directory that can be entered; makes nothing.

    Raises:
      RequestError: see there.
      StorageError: its storage does not answer.
    """
    path = str(workdir.absolute())
    odd = [character for character in '\\*?[]' if character in path]
    check(
        not odd and path.isprintable(),
        f'--workdir={str(workdir)!r} has {odd[0] if odd else "what is not printable"} in its path, '
        'which Orbax, that writes checkpoints, may take for something else: use another name.',
    )
    try:
        next((workdir / 'checkpoints').iterdir(), None)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise of_storage(error, f'--workdir={workdir} cannot be used: {error.strerror}.') from error


@contextlib.contextmanager
def writing(workdir: Path):
    """Makes the work directory; where it, or what the block writes, cannot be written, a line says
    so.

    Raises:
      StorageError: the storage is full, read-only or does not answer.
      RequestError: anything else, as a lack of rights.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        message = f'--workdir={workdir} cannot be written: {error.strerror or error}.'
        raise of_storage(error, message) from error
