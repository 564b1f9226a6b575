"""Checkpoints of a work directory: `checkpoints/STEP/`, written by Orbax in the background.

A checkpoint is a nested dict of arrays and a JSON (what the task says of its architecture, the fingerprint of the data, the versions, and a
checksum of each array), so it can be read without this package: `orbax.checkpoint.v1.load`. `beit_jax.weights.checkpoint` reads the parameters
alone.
"""
from collections.abc import Callable
import functools
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from beit_jax.config import check
from beit_jax.weights.checkpoint import step_directories
from beit_jax.weights.integrity import DamagedError, reading, seal, unseal, verify
from beit_jax.weights.trees import check_same, shapes


class Checkpoints:
    """The checkpoints of a work directory; keeps the newest `keep`."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self._workdir, self._keep, self._pending = Path(workdir).absolute(), keep, None
        self._directory = self._workdir / 'checkpoints'

    @functools.cached_property  # made when it is first needed, for it stumbles over damaged checkpoints
    def _checkpointer(self):
        policies = ocp.training.preservation_policies
        return ocp.training.Checkpointer(self._directory, preservation_policy=policies.LatestN(self._keep))

    @property
    def steps(self) -> list[int]:
        """Of which there is a checkpoint, newest first."""
        return [int(entry.name) for entry in step_directories(self._workdir)]

    def save(self, state, step: int, description: dict) -> None:
        """Starts to save; the arrays are copied before it returns. Raises what the save before it failed with."""
        self.wait()
        self._pending = self._checkpointer.save_async(step, state, force=True, custom_metadata=seal(description, state))

    def wait(self) -> None:
        """Until the last save is on disk; raises what it failed with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def description(self, step: int) -> dict:
        """The JSON that was saved with a checkpoint.

        Raises:
          DamagedError: it is not what was saved.
        """
        path = self._directory / str(step)
        with reading(path):
            return unseal(ocp.metadata(path).custom_metadata, path)[0]

    def restore(self, step: int, abstract, accept: Callable[[dict], None] = lambda description: None):
        """The arrays of a checkpoint, laid out as the shardings of `abstract` say.

        `accept` gets the description of the checkpoint and refuses what does not belong to the run.

        Raises:
          DamagedError: they are not those that were saved.
          RequestError: names, shapes or dtypes differ from `abstract`, or what `accept` refuses.
        """
        path = self._directory / str(step)
        with reading(path):
            metadata = ocp.metadata(path)
            description, arrays = unseal(metadata.custom_metadata, path)
        accept(description)
        with reading(path):
            saved = shapes(metadata.metadata) if arrays is None else {
                name: (tuple(shape), dtype) for name, (dtype, shape, _) in arrays.items()}
            check_same(shapes(abstract), saved, f'checkpoint {path}')
            state = ocp.load(path, abstract)
        verify(state, arrays, path)
        return state

    def restore_newest(self, abstract, accept: Callable[[dict], None]):
        """(the newest state that is whole, lines that name those that are not), or (None, []) where there is no checkpoint.

        abstract, accept: see `restore`.

        Raises:
          RequestError: what `restore` refuses, or no checkpoint is whole.
        """
        damaged = {}
        for step in self.steps:
            try:
                state = self.restore(step, abstract, accept)
            except DamagedError as error:
                damaged[step] = error
                continue
            if damaged:
                self._set_aside(damaged)
            return state, [f'WARNING: {error}: it is set aside as {other}.damaged, the run goes on from step {step}'
                           for other, error in damaged.items()]
        check(not damaged, f'no checkpoint in {self._directory} is whole: {"; ".join(map(str, damaged.values()))}. Give another --workdir to '
              'start anew.')
        return None, []

    def _set_aside(self, steps) -> None:
        """Out of the way of the same steps, which are soon saved again."""
        for step in steps if jax.process_index() == 0 else ():
            (self._directory / str(step)).rename(self._directory / f'{step}.damaged')
        multihost_utils.sync_global_devices('damaged checkpoints are set aside')

    def close(self) -> None:
        self.wait()
        if '_checkpointer' in vars(self):  # made
            self._checkpointer.close()
