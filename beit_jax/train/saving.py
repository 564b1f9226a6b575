"""What a run saves and how it ends: never what is not finite, never in another run's directory."""

from beit_jax.errors import check
from beit_jax.train.processes.exit_status import STOPPED, UNSAVED
from beit_jax.train.run import Run
from beit_jax.train.step import are_finite
from beit_jax.train.stepping import SMALLER_STEPS
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.train.workdir.lock import Lock
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.token_cache import TokenCache


class Saver:
    """Saves states of a run, which go on being written after `save` until `end`."""

    def __init__(
        self,
        run: Run,
        lock: Lock,
        checkpoints: Checkpoints,
        cache: TokenCache | None,
        log: MetricsWriter,
    ):
        self._run, self._lock, self._checkpoints = run, lock, checkpoints
        self._cache, self._log = cache, log

    def save(self, state, step: int, must: bool) -> None:
        """must: wait for the save before it, else this one may be left out.

        Raises:
          RequestError: the parameters are not finite.
          StorageError: another run has taken the work directory.
        """
        self._lock.check()
        check(
            bool(are_finite(state['params'])),
            f'the parameters after step {step} are not finite, and are not saved. {SMALLER_STEPS}',
        )
        if self._cache:
            self._log.say_all(self._cache.flush(step * self._run.config.batch_size))
        self._checkpoints.save(state, step, self._run.description(), must)

    def end(self, status: int, step: int) -> int:
        """The exit status, and a line about it, when everything is on disk or cannot be written."""
        checkpoints, say = self._checkpoints, self._log.say
        checkpoints.wait()
        self._log.say_all(checkpoints.warnings())
        if checkpoints.owed or not self._log.flush():
            say(
                'error: not everything is written (see above). Make room; the same command goes on '
                'from the newest checkpoint.'
            )
            return UNSAVED
        if status == STOPPED:
            steps = checkpoints.steps
            saved = f'step {steps[0]} is saved' if steps else 'no step is saved'
            say(
                f'stopped by a signal after step {step}: {saved}. The same command goes on from '
                'there.'
            )
        else:
            say(f'done: {step} steps; checkpoint {checkpoints.path(step)}')
        return status
