"""The parameters of a checkpoint of this package."""

from collections.abc import Callable
from pathlib import Path
import re

import jax
from orbax.checkpoint import v1 as ocp

from beit_jax.errors import StorageError, check
from beit_jax.weights.integrity import reading, seal, unseal, verify
from beit_jax.whole_files import whole_directory


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is a checkpoint of this package, or a work directory with one."""
    return (Path(path) / 'state').is_dir() or bool(_complete(Path(path)))


def find_checkpoint(path: str) -> Path:
    """The directory of one checkpoint: `path`, or the newest one of the work directory `path`.

    Raises:
      RequestError: neither is there.
    """
    directory = Path(path).absolute()
    if (directory / 'state').is_dir():
        return directory
    complete = _complete(directory)
    check(
        bool(complete),
        f'{path} is neither a checkpoint nor a work directory with one: give W or '
        'W/checkpoints/STEP.',
    )
    return complete[0]


def step_directories(workdir: Path) -> list[Path]:
    """`checkpoints/STEP` of a work directory, newest first.

    Raises:
      StorageError: it cannot be listed, which is not to be taken for a directory without any.
    """
    try:
        entries = list((workdir / 'checkpoints').iterdir())
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    except OSError as error:
        raise StorageError(f'{workdir}/checkpoints cannot be read: {error.strerror}.') from error
    steps = [entry for entry in entries if re.fullmatch('0|[1-9][0-9]{0,17}', entry.name)]
    return sorted(steps, key=lambda entry: int(entry.name), reverse=True)


def _complete(workdir: Path) -> list[Path]:
    return [entry for entry in step_directories(workdir) if (entry / 'state').is_dir()]


def load_params(path: str, place: Callable | None = None):
    """The parameters alone of a checkpoint: their moving average where the run kept one.

    Args:
      path: a checkpoint or a work directory.
      place: from the abstract parameters (nested dict of jax.ShapeDtypeStruct) to the shardings of
        each; None: the first device.

    Returns:
      (parameters as a nested dict of arrays, the checkpoint's description).

    Raises:
      RequestError: no checkpoint.
      DamagedError: they are not what was saved.
      StorageError: they cannot be read now.
    """
    directory, context = find_checkpoint(path), ocp.Context()
    context.pytree.loading.partial_load = True
    with context, reading(directory):
        metadata = ocp.metadata(directory)
        description, arrays = unseal(metadata.custom_metadata, directory)
        there = metadata.metadata if arrays is None else {name.partition('/')[0] for name in arrays}
        name = 'ema' if 'ema' in there else 'params'
        abstract = jax.tree.map(_abstract, metadata.metadata[name])
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = place(abstract) if place else jax.tree.map(lambda _: one, abstract)
        placed = jax.tree.map(_abstract, abstract, shardings)
        params = ocp.load(directory, {name: placed})[name]
    verify({name: params}, arrays, directory)
    return params, description


def save_params(path: Path, params, description: dict) -> None:
    """Writes parameters alone to a new directory, as the checkpoint of step 0 of a run.

    Raises:
      RequestError: there is something already.
      StorageError: it cannot be written now.
    """
    state = {'params': params}
    with whole_directory(path) as directory:
        checkpoint = directory / 'checkpoints' / '0'
        checkpoint.parent.mkdir()
        try:
            ocp.save(checkpoint, state, custom_metadata=seal(description, state))
        except Exception as error:  # storage answers with errors of many types
            reason = ' '.join(str(error).split())[:300]
            raise StorageError(
                f'{path} cannot be written ({reason}): make room, or give another place.'
            ) from error


def _abstract(leaf, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
