"""The one loop: a run is a pure function of (config, seed, step), so it can stop after any step and
go on as if nothing had happened."""

from collections.abc import Callable
import contextlib
import functools
from pathlib import Path

import jax

from beit_jax.settings.run import RunConfig
from beit_jax.train import state as states
from beit_jax.train.evaluation import make_evaluation
from beit_jax.train.opening import check_shared, open_run
from beit_jax.train.processes.agreement import together
from beit_jax.train.processes.distributed import Stop, agreed
from beit_jax.train.processes.exit_status import STOPPED
from beit_jax.train.processes.watchdog import Watchdog
from beit_jax.train.run import Run
from beit_jax.train.saving import Saver
from beit_jax.train.sharding import gather
from beit_jax.train.start import begun, open_cache, restore_or_init
from beit_jax.train.stepping import Stepper
from beit_jax.train.workdir import launches
from beit_jax.train.workdir.changes import config_changes, settings_of, write_config
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.train.workdir.directory import writing
from beit_jax.train.workdir.lock import Lock
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.tracker import Tracker


def train(config: RunConfig, workdir: Path) -> int:
    """Trains from the newest checkpoint of `workdir`, or from the start, to the end.

    Returns:
      the exit status: 0, 75 after a signal, or 74 where what the run owes could not be written.

    Raises:
      RequestError: the config, the data, the work directory or a checkpoint do not fit one another.
      StorageError: data or a checkpoint cannot be read now, the work directory cannot be written,
        or another run has it.
    """
    stop = Stop()
    stop.listen()
    run = open_run(config, workdir, 'train')
    with together():
        run.notes += config_changes(run.config, workdir)
    check_shared(workdir)
    with contextlib.ExitStack() as stack:  # however the run ends, a save under way is finished
        closed_later = lambda resource: stack.enter_context(contextlib.closing(resource))
        return _train(run, stop, closed_later, closed_later(Lock(workdir)))


def _train(run: Run, stop: Stop, closed_later: Callable, lock: Lock) -> int:
    config, total = run.config, run.config.total_steps
    watchdog = closed_later(Watchdog(config.step_timeout))  # closed last: it sees the others close
    checkpoints = closed_later(Checkpoints(run.workdir, config.keep_checkpoints))
    state = restore_or_init(run, checkpoints)
    start = int(state['step'])
    if not start:
        run.notes += run.task.remarks(functools.partial(run.batches.reread, 1))
    log = closed_later(_open_log(run, start))
    resumed = f'; resumed after step {start}' if start else ''
    log.say('\n'.join([run.summary() + resumed, *run.notes]))
    cache = open_cache(run, start, log, closed_later)
    saver = Saver(run, lock, checkpoints, cache, log)
    metrics = None  # of the last evaluation

    def interrupted(batch: int) -> bool:
        watchdog.reset(f'batch {batch} of the evaluation')
        return stop.heard()

    evaluation = make_evaluation(run, interrupted=interrupted)

    def evaluate(step: int) -> bool:
        """False where a signal cut it short: the next start repeats it."""
        nonlocal metrics
        metrics = evaluation(states.averaged_params(state))
        if metrics is not None:
            log.write(step, metrics)
        return metrics is not None

    def end(status: int, step: int) -> int:
        watchdog.reset('the last save')
        return saver.end(status, step)

    if start and run.evaluates(start) and not agreed(log.evaluated) and not evaluate(start):
        return end(STOPPED, start)
    stepper = closed_later(Stepper(run, stop, log, watchdog))
    for step, batch in stepper.batches(start, cache):
        if step == 1:
            state = begun(run, state, batch)
        state = stepper.take(state, batch, step)
        log.say_all(checkpoints.warnings())
        stopping, last = stop.asked(step), step == total
        saves = stopping or last or step % config.save_every == 0
        evaluates = run.evaluates(step) and not stopping
        if not (saves or evaluates):
            continue
        # while steps are skipped, what was learned before them stays the newest checkpoint
        good = not stepper.settle() or last
        if saves and good:
            saver.save(state, step, must=stopping or last)
        if evaluates and not evaluate(step):
            stopping = True
            if not saves and good:
                saver.save(state, step, must=True)
        if stopping:
            return end(STOPPED, step)
        stepper.restart_clock(step)
    params = states.averaged_params(state)
    if run.held_out and metrics is None:  # it went on after the last one, which only the log has
        metrics = evaluation(params)
        if metrics is None:
            return end(STOPPED, total)
    watchdog.pause()
    _finish(run, params, metrics or {})
    return end(0, total)


def _open_log(run: Run, start: int) -> MetricsWriter:
    """The first that is written, in all processes or in none."""
    with together():
        write_config(run.config, run.workdir)
        first, total = jax.process_index() == 0, run.config.total_steps
        log = MetricsWriter(run.workdir, start, total, active=first)
        if first and start < total:
            launches.record(run.workdir, start, run.mesh)
            if run.config.tracker:
                log.also(functools.partial(_open_tracker, run), refuse=not start)
        return log


def _open_tracker(run: Run) -> Tracker:
    first, *_ = launches.launches(run.workdir)
    return Tracker(run.config.tracker, run.workdir, first, settings_of(run.config))


def _finish(run: Run, params, metrics: dict) -> None:
    """Has the task write what else it owes; metrics: of the last evaluation."""
    whole = jax.device_get(gather(run.mesh)(params))
    batches = functools.partial(run.batches.on_host, run.batches.frozen)
    with writing(run.workdir):
        run.task.finish(whole, run.workdir, batches, metrics)
