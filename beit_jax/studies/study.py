"""What a study is: arms that are pre-trained differently, or not at all, then probed and fine-tuned
alike, over several seeds; and its runs, in order."""

import dataclasses
import functools
import itertools
from pathlib import Path
import re
import runpy
import statistics

from beit_jax.errors import check, one_of
from beit_jax.settings.mapping import from_mapping, task_config
from beit_jax.settings.recipes import load_recipe, named
from beit_jax.train.workdir.changes import settings_of
from beit_jax.whole_files import read_json

# The stages before an encoder is judged, in order. Each gives what it leaves to the next: (where it
# lies in its folder, the setting for it).
RESULTS = {
    'tokenizer': ('tokenizer', 'tokenizer.path'),
    'fit_tokenizer': ('tokenizer', 'tokenizer.path'),
    'vqkd': ('tokenizer', 'tokenizer.path'),
    'pretrain': ('', 'init'),
    'classify': ('', 'init'),
}
STAGES = (*RESULTS, 'probe', 'finetune')
# the first of those of the runs that choose a learning rate: no arm is compared with them
CHOOSING_SEED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study file defines STUDY, a dict of these.

    `Settings` are what stands behind the colon of --config.
    """

    recipes: dict  # stage -> 'RECIPE.py[:settings]'; of fit_tokenizer: its arguments
    # name -> {stage: settings}: its stages, of STAGES; `line` and `x` place it in the plot, where
    # `axis` is set; `baseline` and `rates`, for those of all; `teacher`: the arm above it whose
    # encoder, without fine-tuning, teaches its stage vqkd
    arms: dict
    # name -> settings: the fine-tunings that every arm with the stage gets
    tasks: dict = dataclasses.field(default_factory=dict)
    baseline: str = ''  # the arm that others are compared with, seed by seed
    seeds: int = 3  # of the weights, the draws and the choice of labelled pictures, in every stage
    # learning rates of the fine-tuning to choose from; (): that of the recipe
    rates: tuple[float, ...] = ()
    # a rate is chosen by the mean over fine-tunings of the encoders of so many seeds
    choosing_seeds: int = 1
    validation: str = ''  # settings of the runs that choose: other pictures to evaluate on
    metric: str = 'eval/accuracy'
    axis: str = ''  # the plot's horizontal axis, in words; '': arms one below the other

    def __post_init__(self):
        check(
            bool(self.arms) and self.seeds > 0 and self.choosing_seeds > 0,
            'a study needs arms, seeds and choosing_seeds.',
        )
        check(
            bool(self.tasks) or not any('finetune' in arm for arm in self.arms.values()),
            "a study whose arms have 'finetune' needs tasks: the fine-tunings that each gets.",
        )
        above = []
        for name, arm in self.arms.items():
            for stage in arm.keys() - {'line', 'x', 'baseline', 'rates', 'teacher'}:
                one_of(f'a stage of the arm {name!r}', stage, STAGES)
                check(
                    stage in self.recipes,
                    f'the arm {name!r} has the stage {stage}, but recipes has none for it.',
                )
            check(
                'finetune' in arm or 'probe' in arm,
                f"the arm {name!r} has no 'finetune' and no 'probe': give the settings of either, "
                "'' for the recipe's.",
            )
            encoders = [one for one in above if self.arms[one].keys() & {'pretrain', 'classify'}]
            check(
                arm.get('teacher') in (encoders if 'vqkd' in arm else (None,)),
                f'the arm {name!r} has the teacher {arm.get("teacher")!r}: the stage vqkd, and no '
                f'other, takes an arm above it with an encoder ({", ".join(encoders) or "none"}).',
            )
            above.append(name)
            check(
                not self.axis or {'line', 'x'} <= arm.keys(),
                f'the arm {name!r} has no line and x, which the axis {self.axis!r} takes.',
            )
        for names in (self.arms, self.tasks):
            check(
                len(set(map(_as_name, names))) == len(names),
                f'some of these make the same name of a folder: {", ".join(names)}.',
            )
        for baseline in (self.baseline, *(arm.get('baseline', '') for arm in self.arms.values())):
            check(
                baseline in ('', *self.arms),
                f'the baseline {baseline!r} is not an arm. Arms: {", ".join(self.arms)}.',
            )

    def rates_of(self, arm: str) -> tuple[float, ...]:
        return self.arms[arm].get('rates', self.rates) if self.rates else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study; when it is done there is `folder`/result.json."""

    folder: Path
    stage: str
    recipe: str
    settings: str
    needs: tuple['Run', ...] = ()  # the runs that must be done before
    # learning rate -> runs: the rate with the best mean is taken
    candidates: dict = dataclasses.field(default_factory=dict)
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
        return read_json(self.file, 'remove it, and that run is done again')

    def config(self, metric: str) -> dict:
        """All settings; the learning rate is the best of the candidates that are done.

        Raises:
          RequestError: settings that are wrong.
        """
        if self.stage == 'fit_tokenizer':
            return {'arguments': f'{self.recipe} {self.settings}'}
        scores = {}
        for rate, runs in self.candidates.items():
            if all(run.done for run in runs):
                scores[rate] = statistics.fmean(run.result['metrics'][metric] for run in runs)
        best = f'optimizer.lr={max(scores, key=scores.get):g}' if scores else ''
        return settings_of(task_config(_load(self.recipe, self.settings, best)))


def plan(study: Study, workdir: Path) -> list[Run]:
    """All runs, each behind those that it needs, in the order in which they are started. Arms share
    the stages that they have in common."""
    runs = {}

    def add(*folder: str, stage: str, **what) -> Run:
        path = workdir.joinpath(stage, *map(_as_name, folder))
        run = Run(folder=path, stage=stage, recipe=study.recipes[stage], **what)
        return runs.setdefault(path, run)

    def encoder(arm: str, seed: int) -> tuple[tuple[Run, ...], str, list[str]]:
        """(the last of its runs, what gives it to the fine-tuning, the settings it came by)."""
        needs, given, history = (), '', []
        if teacher := study.arms[arm].get('teacher'):
            needs, given, _ = encoder(teacher, seed)
            given, history = f'teacher.path={given.removeprefix("init=")}', [f'by {teacher}']
        for stage in (stage for stage in RESULTS if stage in study.arms[arm]):
            settings = study.arms[arm][stage]
            history.append(settings or 'plain')
            if stage == 'fit_tokenizer':
                settings = f'{settings} --seed {seed}'
            else:
                labels = f'data.subset_seed={seed}' if stage == 'classify' else ''
                settings = _joined(settings, given, f'seed={seed}', labels)
            folder = '+'.join(history), f'seed{seed}'
            made = add(*folder, stage=stage, settings=settings, needs=needs, arm=arm, seed=seed)
            place, setting = RESULTS[stage]
            needs, given = (made,), f'{setting}={made.folder / place}'
        return needs, given, history

    def probe(arm: str, seed: int) -> Run:
        needs, given, history = encoder(arm, seed)
        settings = study.arms[arm]['probe']
        # random weights where there is no encoder
        given = f'encoder={given.removeprefix("init=")}'
        folder = '+'.join((*history, settings or 'plain')), f'seed{seed}'
        joined = _joined(settings, given, f'seed={seed}')
        return add(*folder, stage='probe', settings=joined, needs=needs, arm=arm, seed=seed)

    def fine_tuning(
        arm: str, task: str, seed: int, folder: str, *settings: str, candidates: dict
    ) -> Run:
        needs, given, _ = encoder(arm, seed % CHOOSING_SEED)
        joined = _joined(
            study.arms[arm]['finetune'],
            study.tasks[task],
            given,
            *settings,
            f'seed={seed},data.subset_seed={seed}',
        )
        return add(
            arm,
            task,
            folder,
            stage='finetune',
            settings=joined,
            needs=(*needs, *itertools.chain(*candidates.values())),
            candidates=candidates,
            arm=arm,
            task=task,
            seed=seed,
        )

    def choosing(arm: str, task: str, rate: float, i: int) -> Run:
        seed, folder = CHOOSING_SEED + i, f'choose_lr{rate:g}_seed{i}'
        settings = study.validation, f'optimizer.lr={rate:g}'
        return fine_tuning(arm, task, seed, folder, *settings, candidates={})

    for seed, arm in itertools.product(range(study.seeds), study.arms):
        if 'probe' in study.arms[arm]:
            probe(arm, seed)
        for task in study.tasks if 'finetune' in study.arms[arm] else ():
            candidates = {}
            for rate in study.rates_of(arm):
                seeds = range(study.choosing_seeds)
                candidates[rate] = [choosing(arm, task, rate, i) for i in seeds]
            fine_tuning(arm, task, seed, f'seed{seed}', candidates=candidates)
    return list(runs.values())


def with_teachers(study: Study, names: list[str]) -> list[str]:
    """Names of arms, and those of the arms that teach them."""
    whole = list(names)
    for name in whole:  # which grows
        teacher = study.arms.get(name, {}).get('teacher')
        whole += [teacher] if teacher else []
    return whole


def _as_name(text: str) -> str:
    """Of a file or folder."""
    return re.sub(r'[^\w.=+-]+', '_', text)


def _joined(*settings: str) -> str:
    return ','.join(filter(None, settings))


def _load(recipe: str, *settings: str):
    path, _, variant = recipe.partition(':')
    return load_recipe(path, _joined(variant, *settings))


def load_study(path: str) -> tuple[Study, str]:
    """(the study of a file, or of a name in configs/studies/, its docstring)."""
    names = runpy.run_path(named('--study', path, 'studies'))
    check('STUDY' in names, f'--study={path} defines no STUDY.')
    return from_mapping(Study, names['STUDY']), names['__doc__'] or ''
