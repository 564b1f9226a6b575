"""Does the runs of a study, in one process or in several that share the work directory."""

import contextlib
import fcntl
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time

import jax

from beit_jax import whole_files
from beit_jax.errors import check
from beit_jax.settings.mapping import config_class, task_config
from beit_jax.settings.overrides import flat
from beit_jax.studies.probes import neighbours
from beit_jax.studies.study import Run
from beit_jax.train import loop
from beit_jax.train.workdir.changes import settings_then


def work(runs: list[Run], metric: str) -> None:
    """Does the runs that nobody else does, until all are done."""
    waited = False
    while unfinished := [run for run in runs if not run.done]:
        number = f'{len(runs) - len(unfinished) + 1} of {len(runs)}'
        for run in unfinished:
            if all(need.done for need in run.needs) and _do(run, metric, number):
                break
        else:
            if not waited:
                print('waiting for runs of other processes', flush=True)
            waited = True
            time.sleep(1)


def _do(run: Run, metric: str, number: str) -> bool:
    """Whether the run was ours to do; then it is done. A lock says whose it is, which the system
    takes from a process that ends."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if run.done:
            return True
        began, config = time.perf_counter(), run.config(metric)
        with (
            (run.folder / 'log.txt').open('a', buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            if run.stage == 'fit_tokenizer':
                metrics = _fit(config, run.folder / 'tokenizer')
            else:
                metrics = _train(config, run.folder)
        seconds = round(time.perf_counter() - began, 1)
        result = {'config': config, 'metrics': metrics, 'seconds': seconds}
        whole_files.write(run.file, result, indent=1)
        shown = f'  {metric} {metrics[metric]:.4f}' if metric in metrics else ''
        print(f'run {number}: {run.folder}{shown}  ({seconds:.0f} s)', flush=True)
    return True


def _train(settings: dict, folder: Path) -> dict:
    """The metrics of the last evaluation."""
    status = loop.train(task_config(settings), folder)
    jax.clear_caches()  # a study may have hundreds of runs
    if status:
        sys.exit(status)

    def evaluated(row):
        return {name: value for name, value in row.items() if name.startswith('eval/')}

    rows, _ = whole_files.metric_lines(folder / 'metrics.jsonl')
    metrics = next(filter(None, map(evaluated, reversed(rows))))
    return metrics | (neighbours(folder) if settings['task'] == 'probe' else {})


def _fit(settings: dict, folder: Path) -> dict:
    if not folder.exists():
        tool = [sys.executable, '-m', 'beit_jax.tools.fit_tokenizer']
        command = [*tool, *shlex.split(settings['arguments']), '--output', str(folder)]
        done = subprocess.run(command, check=False, stdout=sys.stdout, stderr=sys.stderr)
        log = folder.parent / 'log.txt'
        check(done.returncode == 0, f'{shlex.join(command)} failed: see {log}.')
    return {}


def check_runs(runs: list[Run], metric: str) -> None:
    """Refuses wrong settings, and a work directory with results of others, before anything runs."""
    for run in runs:
        config, differing = run.config(metric), []
        if run.done:
            then = run.result['config']
            if 'task' in config:
                then = settings_then(then, config_class(config['task']))
            differing = whole_files.differences(then, flat(config))
        check(
            not differing,
            f'{run.folder} was run with other settings ({"; ".join(differing[:3])}): remove it, or '
            'give another --workdir.',
        )


def start_processes(number: int) -> None:
    """The same command so many times, each with its share of this machine's cores; ends with the
    status of one that failed."""
    tool = [sys.executable, '-m', 'beit_jax.tools.study']
    command = [*tool, *sys.argv[1:], '--processes', '1', '--report', 'false']
    # of a GPU each takes what it needs, or the first would leave too little to the others
    environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} | os.environ
    # macOS has no such thing
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    children = []
    for i in range(number):
        if cores:
            os.sched_setaffinity(0, cores[i::number] or cores)
        children.append(subprocess.Popen(command, env=environment))
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
    # the terminal sends it to the children too, who end in their way
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    statuses = [child.wait() for child in children]
    if any(statuses):
        sys.exit(max(map(abs, statuses)))
