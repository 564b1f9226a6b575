"""Runs a study: arms that are pre-trained differently, or not at all, then fine-tuned alike, over several seeds.

Each arm is fine-tuned at the learning rate that did best on validation pictures. Runs that are done are not done again and those that were
stopped go on, so the same command continues a study. Started on several hosts that share the work directory, it shares the runs among them.
"""
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
from pathlib import Path
import re
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import time

import jax

from beit_jax import records
from beit_jax.config import check, from_mapping, one_of
from beit_jax.recipes import load_recipe
from beit_jax.tasks import task_config
from beit_jax.tools import arguments, study_report
from beit_jax.train import loop
from beit_jax.train.changes import settings_of

# The stages before the fine-tuning, in order. Each gives what it leaves to the next: (where it lies in its folder, the setting for it).
RESULTS = {'tokenizer': ('tokenizer', 'tokenizer.path'), 'fit_tokenizer': ('tokenizer', 'tokenizer.path'), 'pretrain': ('', 'init')}
STAGES = (*RESULTS, 'finetune')
CHOOSING_SEED = 1000  # the first of those of the runs that choose a learning rate: no arm is compared with them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study file defines STUDY, a dict of these. `Settings` are what stands behind the colon of --config."""
    recipes: dict  # stage -> 'RECIPE.py[:settings]'; of fit_tokenizer: its arguments
    # name -> {stage: settings}: its stages, of STAGES; `line` and `x` place it in the plot, where `axis` is set; `baseline`, for that of all
    arms: dict
    tasks: dict  # name -> settings: the fine-tunings that every arm gets
    baseline: str = ''  # the arm that others are compared with, seed by seed
    seeds: int = 3  # of the weights, the draws and the choice of labelled pictures, in every stage
    rates: tuple[float, ...] = ()  # learning rates of the fine-tuning to choose from; (): that of the recipe
    choosing_seeds: int = 1  # a rate is chosen by the mean over fine-tunings of the encoders of so many seeds
    validation: str = ''  # settings of the runs that choose: other pictures to evaluate on
    metric: str = 'eval/accuracy'
    axis: str = ''  # the plot's horizontal axis, in words; '': arms one below the other

    def __post_init__(self):
        check(bool(self.arms) and bool(self.tasks) and self.seeds > 0 and self.choosing_seeds > 0,
              'a study needs arms, tasks, seeds and choosing_seeds.')
        for name, arm in self.arms.items():
            for stage in arm.keys() - {'line', 'x', 'baseline'}:
                one_of(f'a stage of the arm {name!r}', stage, STAGES)
                check(stage in self.recipes, f'the arm {name!r} has the stage {stage}, but recipes has none for it.')
            check('finetune' in arm, f"the arm {name!r} has no 'finetune': give its settings, '' for the recipe's.")
            check(not self.axis or {'line', 'x'} <= arm.keys(), f'the arm {name!r} has no line and x, which the axis {self.axis!r} takes.')
        for names in (self.arms, self.tasks):
            check(len(set(map(_as_name, names))) == len(names), f'some of these make the same name of a folder: {", ".join(names)}.')
        for baseline in (self.baseline, *(arm.get('baseline', '') for arm in self.arms.values())):
            check(baseline in ('', *self.arms), f'the baseline {baseline!r} is not an arm. Arms: {", ".join(self.arms)}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study; when it is done there is `folder`/result.json."""
    folder: Path
    stage: str
    recipe: str
    settings: str
    needs: tuple['Run', ...] = ()  # the runs that must be done before
    candidates: dict = dataclasses.field(default_factory=dict)  # learning rate -> runs: the rate with the best mean is taken
    arm: str
    task: str = ''
    seed: int

    @property
    def chooses(self) -> bool:
        """Whether it only helps to choose a learning rate."""
        return self.seed >= CHOOSING_SEED

    @property
    def file(self) -> Path:
        return self.folder / 'result.json'

    @property
    def done(self) -> bool:
        return self.file.is_file()

    @functools.cached_property
    def result(self) -> dict:
        """Of a run that is done: {'config', 'metrics' of the last evaluation, 'seconds'}."""
        return json.loads(self.file.read_text())

    def config(self, metric: str) -> dict:
        """All settings; the learning rate is the best of the candidates that are done.

        Raises:
          RequestError: settings that are wrong.
        """
        if self.stage == 'fit_tokenizer':
            return {'arguments': f'{self.recipe} {self.settings}'}
        scores = {rate: statistics.fmean(run.result['metrics'][metric] for run in runs)
                  for rate, runs in self.candidates.items() if all(run.done for run in runs)}
        rate = f'optimizer.lr={max(scores, key=scores.get):g}' if scores else ''
        return settings_of(task_config(_load(self.recipe, self.settings, rate)))


def plan(study: Study, workdir: Path) -> list[Run]:
    """All runs, each behind those that it needs, in the order in which they are started. Arms share the stages that they have in common."""
    runs = {}

    def add(*folder: str, **what) -> Run:
        path = workdir.joinpath(*map(_as_name, folder))
        return runs.setdefault(path, Run(folder=path, **what))

    def encoder(arm: str, seed: int) -> tuple[tuple[Run, ...], str]:
        """(the last of its runs, what gives it to the fine-tuning)."""
        stages, needs, given, history = study.arms[arm], (), '', []
        for stage in (stage for stage in RESULTS if stage in stages):
            history.append(stages[stage] or 'plain')
            settings = f'{stages[stage]} --seed {seed}' if stage == 'fit_tokenizer' else _joined(stages[stage], given, f'seed={seed}')
            made = add(stage, '+'.join(history), f'seed{seed}', stage=stage, recipe=study.recipes[stage], settings=settings, needs=needs,
                       arm=arm, seed=seed)
            place, setting = RESULTS[stage]
            needs, given = (made,), f'{setting}={made.folder / place}'
        return needs, given

    def fine_tuning(arm: str, task: str, seed: int, folder: str, *settings: str, candidates: dict) -> Run:
        needs, given = encoder(arm, seed % CHOOSING_SEED)
        return add('finetune', arm, task, folder, stage='finetune', recipe=study.recipes['finetune'], arm=arm, task=task, seed=seed,
                   candidates=candidates, needs=(*needs, *itertools.chain(*candidates.values())),
                   settings=_joined(study.arms[arm]['finetune'], study.tasks[task], given, *settings, f'seed={seed},data.subset_seed={seed}'))

    for seed, arm, task in itertools.product(range(study.seeds), study.arms, study.tasks):
        candidates = {rate: [fine_tuning(arm, task, CHOOSING_SEED + i, f'choose_lr{rate:g}_seed{i}', study.validation, f'optimizer.lr={rate:g}',
                                         candidates={}) for i in range(study.choosing_seeds)] for rate in study.rates}
        fine_tuning(arm, task, seed, f'seed{seed}', candidates=candidates)
    return list(runs.values())


def _as_name(text: str) -> str:
    """Of a file or folder."""
    return re.sub(r'[^\w.=+-]+', '_', text)


def _joined(*settings: str) -> str:
    return ','.join(filter(None, settings))


def _load(recipe: str, *settings: str):
    path, _, variant = recipe.partition(':')
    return load_recipe(path, _joined(variant, *settings))


def work(runs: list[Run], metric: str) -> None:
    """Does the runs that nobody else does, until all are done."""
    waited = False
    while unfinished := [run for run in runs if not run.done]:
        for run in unfinished:
            if all(need.done for need in run.needs) and _do(run, metric, f'{len(runs) - len(unfinished) + 1} of {len(runs)}'):
                break
        else:
            if not waited:
                print('waiting for runs of other processes', flush=True)
            waited = True
            time.sleep(1)


def _do(run: Run, metric: str, number: str) -> bool:
    """Whether the run was ours to do; then it is done. A lock says whose it is, which the system takes from a process that ends."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if run.done:
            return True
        began, config = time.perf_counter(), run.config(metric)
        with (run.folder / 'log.txt').open('a', buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            metrics = _fit(config, run.folder / 'tokenizer') if run.stage == 'fit_tokenizer' else _train(config, run.folder)
        seconds = round(time.perf_counter() - began, 1)
        records.write(run.file, {'config': config, 'metrics': metrics, 'seconds': seconds}, indent=1)
        shown = f'  {metric} {metrics[metric]:.4f}' if metric in metrics else ''
        print(f'run {number}: {run.folder}{shown}  ({seconds:.0f} s)', flush=True)
    return True


def _train(settings: dict, folder: Path) -> dict:
    """The metrics of the last evaluation."""
    status = loop.train(task_config(settings), folder)
    jax.clear_caches()  # a study may have hundreds of runs
    if status:
        sys.exit(status)
    rows = [json.loads(line) for line in records.whole_lines(folder / 'metrics.jsonl')]
    return [evaluated for row in rows if (evaluated := {name: value for name, value in row.items() if name.startswith('eval/')})][-1]


def _fit(settings: dict, folder: Path) -> dict:
    if not folder.exists():
        command = [sys.executable, '-m', 'beit_jax.tools.fit_tokenizer', *shlex.split(settings['arguments']), '--output', str(folder)]
        done = subprocess.run(command, check=False, stdout=sys.stdout, stderr=sys.stderr)
        check(done.returncode == 0, f'{shlex.join(command)} failed: see {folder.parent / "log.txt"}.')
    return {}


def check_runs(runs: list[Run], metric: str) -> None:
    """Refuses wrong settings, and a work directory with results of others, before anything is run."""
    for run in runs:
        config = run.config(metric)
        differing = records.differences(run.result['config'], config) if run.done else ()
        check(not differing, f'{run.folder} was run with other settings ({"; ".join(differing[:3])}): remove it, or give another --workdir.')


def run(options) -> None:
    study, about = load_study(options.study)
    arms, tasks = (_only(names, whole, option) for names, whole, option in ((options.arms, study.arms, '--arms'),
                                                                           (options.tasks, study.tasks, '--tasks')))
    arms = {name: {key: value for key, value in arm.items() if key != 'baseline' or value in arms} for name, arm in arms.items()}
    check(options.processes >= 0, f'--processes={options.processes}: use 1 or more, or 0 to write the report only.')
    check(',' not in options.workdir, f'--workdir={options.workdir}: use a path without commas.')
    study = dataclasses.replace(study, arms=arms, tasks=tasks, baseline=study.baseline if study.baseline in arms else '',
                                seeds=options.seeds or study.seeds, rates=study.rates if options.choose_rates else ())
    workdir = Path(options.workdir)
    check(options.processes > 0 or workdir.is_dir(), f'--workdir={workdir}: there is no such folder to report on.')
    runs = plan(study, workdir)
    check_runs(runs, study.metric)
    if options.processes == 1:
        loop.keep_programs(workdir)  # arms share most: rate and seed are part of a compiled step, the encoder's weights are not
        work(runs, study.metric)
    elif options.processes:
        _start_processes(options.processes)
    if options.report:
        chosen = [word for name in ('arms', 'tasks') for word in (f'--{name}', *getattr(options, name)) if getattr(options, name)]
        chosen += [f'--seeds={options.seeds}'] * bool(options.seeds) + ['--choose_rates=false'] * (not options.choose_rates)
        command = shlex.join([f'--study={options.study}', f'--workdir={workdir}', *chosen])
        study_report.write(study, runs, workdir, about, f'python -m beit_jax.tools.study {command}')


def _only(names: list[str], whole: dict, option: str) -> dict:
    for name in names:
        one_of(option, name, whole)
    return {name: value for name, value in whole.items() if name in names or not names}


def _start_processes(number: int) -> None:
    """The same command so many times, each with its share of this machine's cores; ends with the status of one that failed."""
    command = [sys.executable, '-m', 'beit_jax.tools.study', *sys.argv[1:], '--processes', '1', '--report', 'false']
    cores, children = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [], []  # macOS has no such thing
    for i in range(number):
        if cores:
            os.sched_setaffinity(0, cores[i::number] or cores)
        children.append(subprocess.Popen(command))
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the children too, who end in their way
    statuses = [child.wait() for child in children]
    if any(statuses):
        sys.exit(max(map(abs, statuses)))


def load_study(path: str) -> tuple[Study, str]:
    """(the study of a file, its docstring)."""
    check(Path(path).is_file(), f'--study={path}: there is no such file. Studies are in configs/studies/.')
    names = runpy.run_path(path)
    check('STUDY' in names, f'--study={path} defines no STUDY.')
    return from_mapping(Study, names['STUDY']), names['__doc__'] or ''


def _arguments():
    parser = arguments.parser('study', __doc__, 'python -m beit_jax.tools.study --study=configs/studies/quickstart.py --workdir=runs/study')
    parser.add_argument('--study', required=True, help='a file of configs/studies')
    parser.add_argument('--workdir', required=True, help='where every run, results.csv and report.md go')
    parser.add_argument('--processes', type=int, default=1, help='runs at a time on this machine, each on its share of the cores (1); 0: no '
                        'run, a report of what is there')
    parser.add_argument('--seeds', type=int, default=0, help='how many, instead of the study\'s')
    parser.add_argument('--arms', nargs='+', default=[], help='only these (all)')
    parser.add_argument('--tasks', nargs='+', default=[], help='only these (all)')
    parser.add_argument('--choose_rates', type=arguments.true_or_false, default=True,
                        help='whether to choose the learning rate of each arm, or to take that of the recipe (true)')
    parser.add_argument('--report', type=arguments.true_or_false, default=True, help='whether to write the report (true)')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
