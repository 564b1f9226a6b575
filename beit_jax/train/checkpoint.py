"""Checkpoints of a work directory: `checkpoints/STEP/`, written by Orbax in the background.

A checkpoint is a nested dict of arrays and a JSON (what the task says of its architecture, the fingerprint of the data, the versions), so it
can be read without this package: `orbax.checkpoint.v1.load`. `beit_jax.weights.checkpoint` reads the parameters alone.
"""
from pathlib import Path

from orbax.checkpoint import v1 as ocp

from beit_jax.weights.checkpoint import check_same, shapes


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
        saved = shapes(self._checkpointer.metadata(step).metadata)
        check_same(shapes(abstract), saved, f'checkpoint {self._checkpointer.directory / str(step)}')
        return self._checkpointer.load(step, abstract)

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()
