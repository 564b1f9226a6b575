"""Checkpoints of a work directory: `checkpoints/STEP/`, written by Orbax in the background.

A checkpoint is a nested dict of arrays and a JSON (what the task says of its architecture, the fingerprint of the data, the versions), so it
can be read without this package: `orbax.checkpoint.v1.load`. Everything Orbax is behind this file.
"""
from collections.abc import Callable
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from beit_jax.config import check
from beit_jax.train.optimizer import path_string


class Checkpoints:
    """The checkpoints of a work directory; keeps the newest `keep`."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(Path(workdir).absolute() / 'checkpoints', preservation_policy=policies.LatestN(keep))
        self._pending = None

    @property
    def latest(self) -> int | None:
        """The newest step that was saved completely, or None."""
        return self._checkpointer.latest.step if self._checkpointer.latest else None

    def save(self, state, step: int, description: dict) -> None:
        """Starts to save; the arrays are copied before it returns. Raises what the save before it failed with."""
        self.wait()
        self._pending = self._checkpointer.save_async(step, state, force=True, custom_metadata=description)

    def wait(self) -> None:
        """Until the last save is on disk; raises what it failed with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def description(self, step: int) -> dict:
        """The JSON that was saved with a checkpoint."""
        return self._checkpointer.metadata(step).custom_metadata

    def restore(self, step: int, abstract):
        """The arrays of a checkpoint, laid out as the shardings of `abstract` say.

        Raises:
          RequestError: names, shapes or dtypes differ from `abstract`.
        """
        saved = _shapes(self._checkpointer.metadata(step).metadata)
        _check_same(_shapes(abstract), saved, f'checkpoint {self._checkpointer.directory / str(step)}')
        return self._checkpointer.load(step, abstract)

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()


def find_checkpoint(path: str) -> Path:
    """The directory of one checkpoint: `path` itself, or the newest one of the work directory `path`.

    Raises:
      RequestError: neither is there.
    """
    directory = Path(path).absolute()
    if (directory / 'state').is_dir():
        return directory
    steps = [entry for entry in directory.glob('checkpoints/*') if entry.name.isdigit()]
    check(bool(steps), f'{path} is neither a checkpoint nor a work directory with one: give W or W/checkpoints/STEP.')
    return max(steps, key=lambda entry: int(entry.name))


def load_params(path: str, place: Callable | None = None):
    """The parameters alone of a checkpoint (see `find_checkpoint`): their moving average where the run kept one.

    Args:
      path: a checkpoint or a work directory.
      place: from the abstract parameters (nested dict of jax.ShapeDtypeStruct) to the shardings of each; None: the first device.

    Returns:
      (parameters as a nested dict of arrays, the checkpoint's description).
    """
    directory = find_checkpoint(path)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        checkpointer = ocp.training.Checkpointer(directory.parent)
        metadata = checkpointer.metadata(int(directory.name))
        name = 'ema' if 'ema' in metadata.metadata else 'params'
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.metadata[name])
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = place(abstract) if place else jax.tree.map(lambda _: one, abstract)
        abstract = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings)
        params = checkpointer.load(int(directory.name), {name: abstract})[name]
        checkpointer.close()
    return params, metadata.custom_metadata


def check_params(abstract, params, source: str) -> None:
    """Raises RequestError where `params` (arrays) do not have the names, shapes and dtypes of `abstract`."""
    _check_same(_shapes(abstract), _shapes(params), source)


def check_vocabulary(architecture: dict, description: dict, source: str) -> None:
    """Raises RequestError where the head of a checkpoint (its description) predicts another number of tokens than the run's tokenizer has."""
    wanted, found = architecture.get('vocabulary'), description['architecture'].get('vocabulary')
    check(not (wanted and found) or wanted == found, f'the head of {source} predicts {found} tokens, the tokenizer of this run has {wanted}: '
          'give config.tokenizer.path the tokenizer that it was trained with.')


def _shapes(tree) -> dict:
    return {path_string(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_same(wanted: dict, found: dict, source: str) -> None:
    wrong = [f'{name} is {_show(found.get(name))}, the config wants {_show(wanted.get(name))}'
             for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    check(not wrong, f'{source} is of another model ({len(wrong)} arrays differ): {"; ".join(wrong[:3])}{"; ..." if len(wrong) > 3 else ""}. '
          'Change config.model to fit it, or use another checkpoint or work directory.')


def _show(shape_and_dtype) -> str:
    return f'{shape_and_dtype[1]}{list(shape_and_dtype[0])}' if shape_and_dtype else 'missing'
