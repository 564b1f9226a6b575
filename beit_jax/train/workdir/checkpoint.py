"""Checkpoints of a work directory: `checkpoints/STEP/`, written by Orbax in the background.

A checkpoint is a nested dict of arrays and a JSON (what the task says of its architecture, the
fingerprint of the data, the versions, and a checksum of each array), so it can be read without this
package: docs/runs.md has how. `beit_jax.weights.checkpoint` reads the parameters alone.
"""

from collections.abc import Callable
import contextlib
import itertools
from pathlib import Path
import shutil
import time

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from beit_jax.errors import StorageError, check
from beit_jax.train.processes.distributed import agreed
from beit_jax.weights.checkpoint import step_directories
from beit_jax.weights.integrity import DamagedError, reading, seal, unseal, verify
from beit_jax.weights.trees import check_same, shapes

PATIENCE = (1, 3, 6)  # seconds between the tries to read a checkpoint
# Seconds until Orbax gives a save up, by a clock that someone may set: the most that 31 bits of
# milliseconds hold. What hangs, the watchdog ends.
_LONG = 20 * 24 * 3600


def _context() -> ocp.Context:
    context = ocp.Context()
    context.asynchronous.timeout_secs = _LONG
    return context


class Checkpoints:
    """The checkpoints of a work directory; keeps the newest `keep`. A save that fails is told by
    `warnings`, and ends nothing."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self._workdir, self._keep = Path(workdir).absolute(), keep
        self._checkpointer = self._pending = None
        self._directory = self._workdir / 'checkpoints'
        self._warnings, self.owed = [], False  # whether the newest save failed

    @property
    def steps(self) -> list[int]:
        """Of which there is a checkpoint, newest first."""
        return [int(entry.name) for entry in step_directories(self._workdir)]

    def path(self, step: int) -> Path:
        return self._directory / str(step)

    def save(self, state, step: int, description: dict, must: bool = True) -> None:
        """Starts to save; the arrays are copied before it returns. Waits for the save before, or,
        unless it `must`, leaves this one out then."""
        if not must:
            self.wait(0)
            if agreed(self._pending is not None):
                self._warnings.append(
                    f'WARNING: storage is slow: step {step} is not saved, for the save before it '
                    'is not done. Raise config.save_every.'
                )
                return
        self.wait()
        self._remove_unfinished()
        with self._saving(step):
            # made when it is first needed, for it stumbles over damaged checkpoints
            if self._checkpointer is None:
                policy = ocp.training.preservation_policies.LatestN(self._keep)
                self._checkpointer = ocp.training.Checkpointer(
                    self._directory, context=_context(), preservation_policy=policy
                )
            self._pending = (
                step,
                self._checkpointer.save_async(
                    step, state, force=True, custom_metadata=seal(description, state)
                ),
            )

    def wait(self, seconds: float | None = None) -> None:
        """Until the last save is on disk or has failed, or for `seconds`."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with self._saving(step):
            try:
                response.result(seconds)
            except TimeoutError:
                if seconds is None:
                    raise
                self._pending = step, response

    def warnings(self) -> list[str]:
        """Lines on the saves that failed since they were last asked for."""
        self.wait(0)
        warnings, self._warnings = self._warnings, []
        return warnings

    @contextlib.contextmanager
    def _saving(self, step: int):
        try:
            yield
            self.owed = False
        except Exception as error:  # storage answers with errors of many types
            reason = ' '.join(str(error).split())
            newest = (
                f'the newest is that of step {self.steps[0]}' if self.steps else 'there is none'
            )
            self._warnings.append(
                f'WARNING: the checkpoint of step {step} could not be written ({reason[:300]}): '
                f'{newest}. Make room or repair {self._directory}; the next save tries again.'
            )
            self.owed = True
            self._abandon()

    def _abandon(self):
        """Frees the space of what was half written, and forgets the checkpointer, which would tell
        of the failure again and again."""
        with contextlib.suppress(Exception):  # told already
            self._checkpointer.close()
        self._checkpointer = None
        self._remove_unfinished()

    def _remove_unfinished(self):
        """Again later, for threads of a save that failed may write after it was abandoned."""
        for unfinished in (
            self._directory.glob('*.orbax-checkpoint-tmp*') if jax.process_index() == 0 else ()
        ):
            shutil.rmtree(unfinished, ignore_errors=True)

    def description(self, step: int) -> dict:
        """The JSON that was saved with a checkpoint.

        Raises:
          DamagedError: it is not what was saved.
        """
        path = self.path(step)
        with reading(path):
            return unseal(ocp.metadata(path).custom_metadata, path)[0]

    def restore(
        self, step: int, abstract, accept: Callable[[dict], None] = lambda description: None
    ):
        """The arrays of a checkpoint, laid out as the shardings of `abstract` say.

        `accept` gets the description of the checkpoint and refuses what does not belong to the run.

        Raises:
          DamagedError: they are not those that were saved.
          RequestError: names, shapes or dtypes differ from `abstract`, or what `accept` refuses.
        """
        path = self.path(step)
        with reading(path):
            metadata = ocp.metadata(path)
            description, arrays = unseal(metadata.custom_metadata, path)
        accept(description)
        with reading(path):
            if arrays is None:
                saved = shapes(metadata.metadata)
            else:
                saved = {name: (tuple(shape), dtype) for name, (dtype, shape, _) in arrays.items()}
            check_same(shapes(abstract), saved, f'checkpoint {path}')
            state = ocp.load(path, abstract)
        verify(state, arrays, path)
        return state

    def restore_newest(self, abstract, accept: Callable[[dict], None]):
        """(the newest state that is whole, lines that name those that are not), or (None, []) where
        there is no checkpoint.

        abstract, accept: see `restore`.

        Raises:
          RequestError: what `restore` refuses, or no checkpoint is whole.
          StorageError: one cannot be read, tried several times.
        """
        self._remove_unfinished()  # by a process that was killed
        damaged = {}
        for step in self.steps:
            try:
                state = self._restore_patiently(step, abstract, accept)
            except DamagedError as error:
                damaged[step] = error
                continue
            names = {other: self._free_name(f'{other}.damaged') for other in damaged}
            if damaged:
                self._set_aside(names)
            return state, [
                f'WARNING: {error}: it is set aside as {names[other]}, the run goes on from step '
                f'{step}'
                for other, error in damaged.items()
            ]
        check(
            not damaged,
            f'no checkpoint in {self._directory} is whole: '
            f'{"; ".join(map(str, damaged.values()))}. Give another --workdir to start anew.',
        )
        return None, []

    def _restore_patiently(self, step: int, abstract, accept):
        waits, doubted = iter(PATIENCE), False
        while True:
            try:
                return self.restore(step, abstract, accept)
            except DamagedError:  # as storage that failed for a moment looks, too
                if doubted:
                    raise
                doubted = True
            except StorageError:
                seconds = next(waits, None)
                if seconds is None:
                    raise
                time.sleep(seconds)

    def _free_name(self, name: str) -> str:
        """`name`, or `name`.2 and so on where that is there."""
        names = itertools.chain([name], (f'{name}.{number}' for number in itertools.count(2)))
        return next(name for name in names if not (self._directory / name).exists())

    def _set_aside(self, names: dict[int, str]) -> None:
        """Out of the way of the same steps, which are soon saved again."""
        for step, name in names.items() if jax.process_index() == 0 else ():
            self.path(step).rename(self._directory / name)
        multihost_utils.sync_global_devices('damaged checkpoints are set aside')

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._remove_unfinished()
