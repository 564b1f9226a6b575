"""One training step after the other: compiled once, looked at one step late, refused where it went
wrong."""

from collections.abc import Iterator
import concurrent.futures
import os
import time

import jax
import numpy as np

import beit_jax
from beit_jax.errors import RequestError, StorageError
from beit_jax.models.memory import check_program
from beit_jax.train import step as steps
from beit_jax.train.clock import Clock
from beit_jax.train.flops import of_preparation, of_step
from beit_jax.train.processes.distributed import Stop, anywhere
from beit_jax.train.processes.exit_status import STOPPED
from beit_jax.train.processes.watchdog import Watchdog
from beit_jax.train.run import Run
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.token_cache import TokenCache

SMALLER_STEPS = (
    'Lower config.optimizer.lr or config.optimizer.clip_norm and add --config.accept_changes=true: '
    'it goes on from the newest checkpoint, of before that.'
)


class Stepper:
    """Takes steps and logs them. Metrics are read one step late, so that the device has the next
    step when the host waits for them."""

    def __init__(self, run: Run, stop: Stop, log: MetricsWriter, watchdog: Watchdog):
        self._run, self._stop, self._log, self._watchdog = run, stop, log, watchdog
        self._step = steps.make_train_step(
            run.task, run.optimizer, run.schedule, run.mesh, run.config.total_steps
        )
        self._clock = self._in_flight = self._done = None
        self._watch = concurrent.futures.ThreadPoolExecutor(1)
        self._profiling = False

    def batches(self, start: int, cache: TokenCache | None) -> Iterator[tuple[int, dict]]:
        """(step, its batch) after step `start`, with an eye on how long the device has nothing to
        do until the batch is there."""
        asked = time.perf_counter()
        for step, batch in enumerate(self._run.batches.train(start, cache), start + 1):
            if self._clock:
                self._clock.fetched(asked, self._done)
            yield step, batch
            asked = time.perf_counter()

    def take(self, state, batch, number: int):
        """The state after step `number`."""
        if first := self._clock is None:
            flops = concurrent.futures.ThreadPoolExecutor(1).submit(self._count, state, batch)
            self._compile(state, batch)
            self._clock = Clock(self._run, number - 1, flops.result(), self._log.kept)
        self._watchdog.reset(f'step {number}')
        self._profile(number)
        state, metrics = self._step(state, batch)
        self._done = self._watch.submit(_when_ready, metrics['skipped_in_a_row'])
        if first:
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - beit_jax.LAUNCHED
            self._log.say(f'the first step was done {seconds:.1f} s after the launch')
        # one step is under way and one waits: enough for the device, and soon saved after a signal
        self.settle()
        self._in_flight = number, metrics
        self._log.advance()
        return state

    def settle(self) -> bool:
        """Waits for the step under way, logs it if it is due, and refuses to go on where it
        went wrong. Returns whether it was skipped."""
        if self._in_flight is None:
            return False
        (number, metrics), self._in_flight = self._in_flight, None
        in_a_row = int(metrics['skipped_in_a_row'])  # waits until the step is done
        config = self._run.config
        if number == config.total_steps or number % config.log_every == 0:
            self._write(number, metrics)
        if in_a_row:
            self._skipped(number, in_a_row)
        return in_a_row > 0

    def _count(self, state, batch) -> tuple[int, int]:
        """Floating-point operations of a step, and of what prepares its batch."""
        task = self._run.task
        return of_step(task, state['params'], batch), of_preparation(task, task.frozen)

    def restart_clock(self, number: int) -> None:
        """What took time since step `number` was no step."""
        self._clock.restart(number)

    def _compile(self, state, batch) -> None:
        """In a thread: a signal ends the process at once, for no step has begun."""
        self._watchdog.pause()
        self._log.say('compiling the step: seconds for a small model, minutes for a large one')
        began = time.perf_counter()
        compile_ = self._step.lower(state, batch).compile
        compiling = concurrent.futures.ThreadPoolExecutor(1).submit(compile_)
        while not compiling.done():
            concurrent.futures.wait([compiling], timeout=0.2)
            if self._stop.heard():
                print(
                    'stopped by a signal while the step was compiled: nothing is lost. The same '
                    'command goes on.',
                    flush=True,
                )
                # an orderly exit would wait for the compiler, which takes minutes
                os._exit(STOPPED)
        self._stop.meet()
        self._step = compiling.result()
        check_program(self._step, 'a step')
        line = f'compiled the step in {time.perf_counter() - began:.1f} s'
        memory = self._step.memory_analysis()
        if memory:
            line += (
                f'; {memory.argument_size_in_bytes / 1e9:.2f} GB of arguments and '
                f'{memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries a device'
            )
        self._log.say(line)

    def _profile(self, number: int) -> None:
        """A window that the run was stopped in goes on with what is left of it."""
        profile = self._run.config.profile
        if profile.start <= number < profile.start + profile.steps:
            if not self._profiling:
                jax.profiler.start_trace(str(self._run.workdir / 'profile'))
                self._profiling = True
        else:
            self._end_profile()

    def close(self) -> None:
        self._end_profile()
        self._watch.shutdown(wait=False)

    def _end_profile(self) -> None:
        """Writes the trace where one is being taken."""
        if self._profiling:
            self._profiling = False
            jax.profiler.stop_trace()

    def _write(self, step: int, metrics) -> None:
        metrics = jax.device_get(metrics)
        figures, left = self._clock.lap(step)
        if self._clock.laps == 1:
            self._log.say(f'a step takes {figures["step_seconds"]:.3f} s')
        self._log.write(step, metrics | figures, left)
        self._check_bad(step, int(metrics['bad_records']))

    def _check_bad(self, step: int, bad: int) -> None:
        """Refuses to go on where too many examples could not be read."""
        data, seen = self._run.config.data, step * self._run.config.batch_size
        # one bad record among the first few is not yet a bad data set
        if bad / seen <= data.max_bad_share or bad <= 1:
            return
        message = (
            f'{bad} of {seen} examples could not be read ({bad / seen:.1%}), more than '
            f'config.data.max_bad_share ({data.max_bad_share:.1%})'
        )
        if anywhere(self._run.batches.away()):
            raise StorageError(
                f'{message}, but most of the last are not damaged: when {data.path or data.name} '
                'can be read again, the same command goes on.'
            )
        raise RequestError(f'{message}: repair {data.path or data.name} or raise it.')

    def _skipped(self, step: int, in_a_row: int) -> None:
        """Says that a step was skipped, and refuses to go on after too many; their first batch is
        then in the work directory."""
        first = step - in_a_row + 1
        self._log.say(
            f'warning: loss, gradient or parameters of step {step} are not finite: it is skipped, '
            f'as are all since step {first}'
        )
        if in_a_row < self._run.config.max_skipped_steps:
            return
        path = self._run.workdir / f'skipped_step_{first}_process_{jax.process_index()}.npz'
        try:
            np.savez(path, **self._run.batches.reread(first))
            where = f'is in {path}'
        except OSError as error:
            where = f'could not be written to {path} ({error.strerror})'
        raise RequestError(
            f'loss, gradient or parameters of {in_a_row} steps in a row, from step {first} on, '
            f'were not finite. None of them changed anything; the batch of step {first} {where}. '
            f'{SMALLER_STEPS}'
        )


def _when_ready(array: jax.Array) -> float:
    """Waits for it."""
    array.block_until_ready()
    return time.perf_counter()
