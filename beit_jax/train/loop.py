"""The one loop: a run is a pure function of (config, seed, step), so it can stop after any step and
go on as if nothing had happened."""

from collections.abc import Callable
import concurrent.futures
import contextlib
import json
import os
from pathlib import Path
import sys
import time

import jax

import beit_jax
from beit_jax.errors import check
from beit_jax.settings.run import RunConfig
from beit_jax.train import optimizer as optimizers
from beit_jax.train import step as steps
from beit_jax.train.changes import config_changes, write_config
from beit_jax.train.checkpoint import Checkpoints
from beit_jax.train.distributed import Stop, agreed
from beit_jax.train.metrics import MetricsWriter, PredictionsWriter
from beit_jax.train.run import HELD_OUT, Run
from beit_jax.train.watchdog import Watchdog

STOPPED = 75  # exit status: stopped by a signal, all is saved (EX_TEMPFAIL: try again)
UNSAVED = 74  # exit status: a checkpoint or metrics could not be written (EX_IOERR)


def train(config: RunConfig, workdir: Path) -> int:
    """Trains from the newest checkpoint of `workdir`, or from the start, to the end. Returns the
    exit status: 0, 75 after a signal, or 74 where what the run owes could not be written.

    Raises:
      RequestError: the config, the data, the work directory or a checkpoint do not fit one another.
    """
    stop = Stop()
    stop.listen()
    run = Run(config, workdir)
    run.notes += config_changes(run.config, workdir)
    with contextlib.ExitStack() as closing:  # however the run ends, a save under way is finished
        return _train(
            run, stop, lambda resource: closing.enter_context(contextlib.closing(resource))
        )


def _train(run, stop: Stop, closed_later: Callable) -> int:
    config, workdir, mesh, task = run.config, run.workdir, run.mesh, run.task
    schedule = optimizers.learning_rate(
        config.optimizer, config.total_steps, len(run.source) / config.batch_size
    )
    optimizer = optimizers.make_optimizer(config.optimizer, schedule, steps.abstract_params(task))
    checkpoints = closed_later(Checkpoints(workdir, config.keep_checkpoints))
    state = run.restore_or_init(checkpoints, optimizer)
    write_config(config, workdir)
    start = int(state['step'])
    log = closed_later(
        MetricsWriter(workdir, start, config.total_steps, active=jax.process_index() == 0)
    )
    log.say(
        '\n'.join([run.summary() + (f'; resumed after step {start}' if start else ''), *run.notes])
    )
    run.open_cache(start, log)
    watchdog = closed_later(Watchdog(config.step_timeout))

    def interrupted(batch: int) -> bool:
        watchdog.reset(f'batch {batch} of the evaluation')
        return stop.heard

    evaluate, metrics = run.make_evaluation(interrupted=interrupted), None

    def evaluated(step: int) -> bool:
        """Evaluates; False where a signal ended that. A run that goes on later begins with the
        evaluation that it owes."""
        nonlocal metrics
        metrics = evaluate(steps.averaged_params(state))
        if metrics is not None:
            log.write(step, metrics)
        return metrics is not None

    if start and run.evaluates(start) and not agreed(log.evaluated) and not evaluated(start):
        return _end(STOPPED, start, log, checkpoints)
    stepper = _Stepper(
        run,
        steps.make_train_step(task, optimizer, schedule, mesh, config.total_steps),
        stop,
        log,
        watchdog,
    )
    for number, batch in zip(range(start + 1, config.total_steps + 1), run.train_batches(start)):
        state = stepper.take(state, batch, number)
        log.say_all(checkpoints.warnings())
        stopping, evaluating = stop.asked(number), run.evaluates(number)
        saving = stopping or number == config.total_steps or number % config.save_every == 0
        if not (evaluating or saving):
            continue
        stepper.write()  # before what is written below
        if saving:
            run.save(checkpoints, state, number, must=stopping or number == config.total_steps)
        if evaluating and not stopping:
            stopping = not evaluated(number)
            if stopping and not saving:
                run.save(checkpoints, state, number, must=True)
        if stopping:
            return _end(STOPPED, number, log, checkpoints)
        stepper.clock.restart(number)
    watchdog.pause()
    finished = run.finish(steps.averaged_params(state), metrics, evaluate)
    return _end(0 if finished else STOPPED, config.total_steps, log, checkpoints)


class _Stepper:
    """Takes steps and logs them. Metrics are read one step late, so that the device has the next
    step when the host waits for them."""

    def __init__(self, run, train_step, stop: Stop, log: MetricsWriter, watchdog: Watchdog):
        self._run, self._step, self._stop, self._log, self._watchdog = (
            run,
            train_step,
            stop,
            log,
            watchdog,
        )
        self.clock = self._pending = self._before = None

    def take(self, state, batch, number: int):
        """The state after step `number`."""
        if self.clock is None:
            self._watchdog.pause()
            self._step, note = _compile(self._step, state, batch, self._stop)
            self._log.say(note)
            self.clock = _Clock(number - 1, self._run.config.batch_size)
        self._watchdog.reset(f'step {number}')
        _profile(self._run.config, number, self._run.workdir)
        state, metrics = self._step(state, batch)
        if self._before is None:
            jax.block_until_ready(metrics)
            self._log.say(
                f'the first step was done {time.perf_counter() - beit_jax.LAUNCHED:.1f} s after the '
                'launch'
            )
        # one step is under way and one waits: enough for the device, and soon saved after a signal
        jax.block_until_ready(self._before)
        self._before = metrics
        self.write()
        self._log.advance()
        if number == self._run.config.total_steps or number % self._run.config.log_every == 0:
            self._pending = number, metrics
        return state

    def write(self) -> None:
        """Logs the step that waits for it."""
        if self._pending:
            self._run.write(self._log, self.clock, *self._pending)
            self._pending = None


def _end(status: int, step: int, log: MetricsWriter, checkpoints: Checkpoints) -> int:
    """The exit status, and a line about it, when everything is on disk or cannot be written."""
    checkpoints.wait()
    log.say_all(checkpoints.warnings())
    if checkpoints.owed or not log.flush():
        status = UNSAVED
        log.say(
            'error: not everything is written (see above). Make room; the same command goes on '
            'from the newest checkpoint.'
        )
    elif status == STOPPED:
        log.say(f'stopped by a signal: step {step} is saved. The same command goes on from there.')
    else:
        log.say(f'done: {step} steps; checkpoint {checkpoints.path(step)}')
    return status


def evaluate(config: RunConfig, workdir: Path) -> int:
    """Evaluates `config.init`, or else the newest checkpoint of `workdir`, on the held-out data;
    prints the metrics as JSON.

    Writes `predictions.csv` to the work directory where the task predicts classes.
    """
    run = Run(config, workdir)
    check(run.held_out is not None, f'there are no held-out images: {HELD_OUT}.')
    path = config.init or str(workdir)
    params, fresh, notes = run.load_params(path)
    check(
        not fresh,
        f'{path} has nothing for {", ".join(fresh)}: it cannot be evaluated before it is '
        'fine-tuned. Give another config.init, or --config.init= for the newest checkpoint of '
        '--workdir.',
    )
    for note in notes if jax.process_index() == 0 else ():
        print(note, file=sys.stderr)
    with PredictionsWriter(
        workdir / 'predictions.csv', run.held_out, active=jax.process_index() == 0
    ) as predictions:
        metrics = run.make_evaluation(predictions.write)(params)
    if jax.process_index() == 0:
        print(json.dumps({name: float(value) for name, value in metrics.items()}))
    return 0


class _Clock:
    """Images per second between the logged steps, without the time of evaluations and saves."""

    def __init__(self, step: int, batch_size: int):
        self._batch_size, self.laps = batch_size, 0
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def lap(self, step: int) -> float:
        rate = (step - self._step) * self._batch_size / (time.perf_counter() - self._time)
        self.restart(step)
        self.laps += 1
        return rate


def _compile(train_step, state, batch, stop: Stop):
    """(the compiled step, a line about the time it took and the memory it needs). A signal ends the
    process: nothing has been learned yet."""
    began = time.perf_counter()
    compiling = concurrent.futures.ThreadPoolExecutor(1).submit(
        train_step.lower(state, batch).compile
    )
    while not compiling.done():
        concurrent.futures.wait([compiling], timeout=0.2)
        if stop.heard:
            print(
                'stopped by a signal while the step was compiled: nothing is lost. The same '
                'command goes on.',
                flush=True,
            )
            os._exit(STOPPED)  # an orderly exit would wait for the compiler, which takes minutes
    compiled = compiling.result()
    memory = compiled.memory_analysis()
    sizes = f'; {memory.argument_size_in_bytes / 1e9:.2f} GB of arguments and {memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries a device'
    return (
        compiled,
        f'compiled the step in {time.perf_counter() - began:.1f} s{sizes if memory else ""}',
    )


def _profile(config: RunConfig, number: int, workdir: Path) -> None:
    profile = config.profile
    if profile.steps and number == profile.start:
        jax.profiler.start_trace(str(workdir / 'profile'))
    if profile.steps and number == profile.start + profile.steps:
        jax.profiler.stop_trace()
