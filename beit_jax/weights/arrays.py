"""Arrays by name in a safetensors file, and what people take for a file of weights."""

from collections.abc import Mapping
from pathlib import Path
import re

import numpy as np
import safetensors
import safetensors.numpy

from beit_jax.errors import RequestError, check, of_storage

# how files begin that are downloaded in the place of another one
_STRANGERS = (
    (
        rb'version https://git-lfs',
        'a pointer of Git LFS, not the file itself: `git lfs pull` in its folder puts the file in '
        'its place',
    ),
    (rb'\s*<(!doctype|html|\?xml)', 'a web page, not the file: download the file itself'),
)


def check_weights(path: str | Path) -> None:
    """Raises RequestError where there is no file at a path, or one that only stands for it;
    StorageError where it cannot be read."""
    try:
        check(Path(path).is_file(), f'{path} cannot be read: No such file.')
        with open(path, 'rb') as file:
            start = file.read(100)
    except OSError as error:
        raise of_storage(error, f'{path} cannot be read: {error.strerror}.') from error
    for pattern, what in _STRANGERS:
        check(not re.match(pattern, start, re.IGNORECASE), f'{path} is {what}.')


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, the texts of its header) of a safetensors file.

    Raises:
      RequestError: no such file, damaged, or of numbers that NumPy does not have.
      StorageError: it cannot be read now.
    """
    check_weights(path)
    try:
        with safetensors.safe_open(path, 'np') as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except AttributeError as error:  # of NumPy, which does not have all types
        raise RequestError(
            f'{path} holds numbers of a type that is no type of weights ({error}).'
        ) from error
    except OSError as error:
        raise of_storage(error, f'{path} cannot be read: {error}.') from error
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise RequestError(
            f'{path} cannot be read as safetensors ({str(error)[:200]}): it is damaged or '
            'truncated, or something else: write or download it again.'
        ) from error


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, readable by whom the umask says: the library leaves it to
    oneself."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(dict(arrays), path, header)
    path.chmod(mode & 0o777)
