"""Compares arms of a study: the same fine-tuning from different starts, over several seeds, each arm at the learning rate that did best on
validation pictures. What is done already is not done again."""
import dataclasses
import json
from pathlib import Path
import runpy
import statistics
import sys

from beit_jax.config import check, from_mapping, one_of
from beit_jax.recipes import load_recipe
from beit_jax.records import whole_lines
from beit_jax.tasks import task_config
from beit_jax.tools import arguments
from beit_jax.train import loop

CHOOSING_SEED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study file defines STUDY, a dict of these."""
    recipe: str  # of the fine-tuning, a path below the working directory
    arms: dict  # name -> what stands behind the recipe's colon
    rates: tuple[float, ...] = ()  # learning rates to choose from; () takes each arm's own
    seeds: int = 3
    validation: str = ''  # settings of the runs that choose, behind the colon: other pictures to evaluate on
    metric: str = 'eval/accuracy'


def run_arm(study: Study, settings: str, seed: int, workdir: Path) -> float:
    """The metric at the end of one run."""
    config = task_config(load_recipe(study.recipe, ','.join(filter(None, (settings, f'seed={seed}', f'data.subset_seed={seed}')))))
    print(f'== {workdir}', flush=True)
    status = loop.train(config, workdir)
    if status:
        sys.exit(status)
    rows = [json.loads(line) for line in whole_lines(workdir / 'metrics.jsonl')]
    return round([row[study.metric] for row in rows if study.metric in row][-1], 6)


def choose_rate(study: Study, settings: str, workdir: Path) -> float | None:
    """The learning rate that does best on the validation pictures, with a seed that no arm is tested with; None: the arm's own."""
    if len(study.rates) < 2:
        return study.rates[0] if study.rates else None
    scores = {rate: run_arm(study, f'{settings},{study.validation},optimizer.lr={rate:g}', CHOOSING_SEED, workdir / f'choose_lr{rate:g}')
              for rate in study.rates}
    return max(scores, key=scores.get)


def run(options) -> None:
    study = _load(options.study)
    for name in options.arms:
        one_of('--arms', name, study.arms)
    changes = {'seeds': options.seeds or study.seeds, 'rates': study.rates if options.choose_rates else (),
               'arms': {name: settings for name, settings in study.arms.items() if name in options.arms or not options.arms}}
    study, workdir, rows = dataclasses.replace(study, **changes), Path(options.workdir), []
    for name, arm in study.arms.items():
        folder = workdir / name.replace(' ', '_').replace(',', '')
        rate = choose_rate(study, arm, folder)
        settings = arm if rate is None else f'{arm},optimizer.lr={rate:g}'
        config = load_recipe(study.recipe, settings)
        values = [run_arm(study, settings, seed, folder / f'lr{config.optimizer.lr:g}_seed{seed}') for seed in range(study.seeds)]
        rows.append({'arm': name, 'lr': config.optimizer.lr, 'steps': config.total_steps, 'values': values, 'mean': statistics.fmean(values),
                     'deviation': statistics.stdev(values) if len(values) > 1 else None})
    (workdir / 'results.json').write_text(json.dumps(rows, indent=1) + '\n')
    width = max(len(row['arm']) for row in rows)
    print(f'{study.metric} over {study.seeds} seed{"s" * (study.seeds > 1)} of {study.recipe}:')
    for row in rows:
        spread = '' if row['deviation'] is None else f' +- {row["deviation"]:.3f}  ({", ".join(f"{value:.3f}" for value in row["values"])})'
        print(f'  {row["arm"]:{width}}  {row["steps"]:5} steps at lr {row["lr"]:g}  {row["mean"]:.3f}{spread}')


def _load(path: str) -> Study:
    check(Path(path).is_file(), f'--study={path}: there is no such file. Studies are in configs/studies/.')
    names = runpy.run_path(path)
    check('STUDY' in names, f'--study={path} defines no STUDY.')
    return from_mapping(Study, names['STUDY'])


def _arguments():
    parser = arguments.parser('study', __doc__, 'python -m beit_jax.tools.study --study configs/studies/quickstart.py --workdir runs/study')
    parser.add_argument('--study', required=True, help='a file of configs/studies')
    parser.add_argument('--workdir', required=True, help='where every run and results.json go')
    parser.add_argument('--seeds', type=int, default=0, help='how many, instead of the study\'s')
    parser.add_argument('--arms', nargs='+', default=[], help='only these (all)')
    parser.add_argument('--choose_rates', type=arguments.true_or_false, default=True,
                        help='whether to choose the learning rate of each arm, or to take that of the recipe (true)')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
