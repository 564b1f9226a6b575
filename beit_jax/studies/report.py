"""What a study found: `results.csv` (a line a run), `report.md` (tables), `report.png` (mean and
deviation of each arm) and `probes.png` (every layer of the encoders)."""

import csv
from importlib.metadata import version
import os
from pathlib import Path
import platform
import statistics

import jax
import matplotlib
from matplotlib.figure import Figure

from beit_jax.machines.processor import machine
from beit_jax.studies import probes

matplotlib.use('Agg')
VERSIONS = ('jax', 'flax', 'optax', 'numpy')
PRETRAINING = (
    'eval/token_accuracy',
    'eval/majority_accuracy',
    'eval/token_perplexity',
    'eval/loss',
)


def write(study, runs: list, workdir: Path, output: Path, about: str, command: str) -> None:
    """Writes the files of the runs that are done into `output`, and prints the tables.

    about: the study file's docstring, whose first paragraph is the title; command: what was run.
    """
    done = [run for run in runs if run.done]
    output.mkdir(parents=True, exist_ok=True)
    _write_csv(done, workdir, output)
    tables, hours = [], sum(run.result['seconds'] for run in done) / 3600
    if _compared(done):
        _plot(study, done, output / 'report.png')
        tables += [*_table(study, done), '', '![mean and deviation of each arm](report.png)', '']
    if probed := probes.by_arm(study, done):
        probes.plot(probed, output / 'probes.png')
        tables += [*_probe_table(study, probed), '', '![accuracy by layer](probes.png)', '']
    missing = ''
    if len(done) < len(runs):
        missing = f' {len(runs) - len(done)} of {len(runs)} runs are missing.'
    title = ' '.join(about.strip().partition('\n\n')[0].split())
    lines = [
        f'# {title}',
        '',
        f'`{command}`',
        '',
        f'{_machine()}. {len(done)} runs, {hours:.2f} hours of one process.{missing}',
        '',
        *tables,
        *_pretraining_table(done),
    ]
    (output / 'report.md').write_text('\n'.join(lines).rstrip() + '\n')
    shown = '\n'.join(line for line in tables if not line.startswith('!['))
    print(shown.rstrip(), f'\n-> {output / "report.md"}')


def _compared(done: list) -> list:
    """The fine-tunings that are."""
    return [run for run in done if run.stage == 'finetune' and not run.chooses]


def _percent(done: list, metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """{(arm, task): {seed: 100 times the metric}} of the fine-tunings that are compared."""
    found = {}
    for run in _compared(done):
        score = 100 * run.result['metrics'][metric]
        found.setdefault((run.arm, run.task), {})[run.seed] = score
    return found


def _spread(numbers, digits: int, sign: str = '') -> str:
    """'mean +- deviation', which is that of a sample; of one number itself."""
    numbers = list(numbers)
    deviation = f' +- {statistics.stdev(numbers):.{digits}f}' if len(numbers) > 1 else ''
    return f'{statistics.fmean(numbers):{sign}.{digits}f}{deviation}'


def _in_words(metric: str) -> str:
    return metric.removeprefix('eval/').replace('_', ' ')


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def _table(study, done):
    found = _percent(done, study.metric)
    rates = {
        (run.arm, run.task): run.result['config']['optimizer']['lr'] for run in _compared(done)
    }

    def cell(arm, task):
        if (arm, task) not in found:
            return '-'
        percent = found[arm, task]
        parts = [f'{_spread(percent.values(), 1)} ({len(percent)})']
        baseline = study.arms[arm].get('baseline', study.baseline)
        others = found.get((baseline, task), {}) if arm != baseline else {}
        differences = [percent[seed] - others[seed] for seed in percent if seed in others]
        if differences:
            parts.append(_spread(differences, 1, '+'))
        rate, tried = rates[arm, task], study.rates_of(arm)
        at_edge = len(tried) > 1 and rate in (min(tried), max(tried))
        parts.append(f'lr {rate:g}{" (edge)" if at_edge else ""}')
        return '; '.join(parts)

    legend = f'In percent: mean +- deviation of {_in_words(study.metric)} over seeds (how many)'
    baselines = {study.baseline, *(arm.get('baseline', '') for arm in study.arms.values())} - {''}
    if baselines:
        named = f'"{study.baseline}"' if baselines == {study.baseline} else 'its baseline'
        legend += f'; what it is ahead of {named} with the same seed'
    legend += '; learning rate' + (', the best on validation pictures.' if study.rates else '.')
    lines = [_row(_in_words(study.metric), *study.tasks), '|-' * (1 + len(study.tasks)) + '|']
    for arm in study.arms:
        lines.append(_row(arm, *(cell(arm, task) for task in study.tasks)))
    return [*lines, '', legend]


def _probe_table(study, probed):
    lines = [_row('frozen encoder', *probes.COLUMNS), '|-' * (1 + len(probes.COLUMNS)) + '|']
    for arm, each in probed.items():
        cells = []
        for pattern in probes.COLUMNS.values():
            known = [100 * best for best in probes.best(each, pattern)]
            cells.append(f'{_spread(known, 1)} ({len(known)})' if known else '-')
        lines.append(_row(arm, *cells))
    legend = 'In percent, of the best layer and features: mean +- deviation over seeds (how many).'
    return [*lines, '', legend]


def _pretraining_table(done):
    """What pre-training says of itself, under the first arm that has it. Tokens differ in how hard
    they are to predict: it does not tell which encoder is the best one."""
    runs = {}
    for run in done:
        if run.stage == 'pretrain':
            runs.setdefault(run.arm, []).append(run)
    if not runs:
        return []

    def cell(each, metric):
        if metric not in each[0].result['metrics']:
            return '-'
        return _spread((run.result['metrics'][metric] for run in each), 3)

    head = 'pre-training', 'hours, with all before it', 'pictures seen'
    lines = [_row(*head, *map(_in_words, PRETRAINING)), '|-' * (3 + len(PRETRAINING)) + '|']
    for name, each in runs.items():
        config, hours = each[0].result['config'], _spread(map(_hours, each), 2)
        seen = f'{config["total_steps"] * config["batch_size"]:,}'
        lines.append(_row(name, hours, seen, *(cell(each, metric) for metric in PRETRAINING)))
    return lines


def _hours(run) -> float:
    """Hours of one process for a run and all that it came from: tokenizer, teacher."""
    return run.result['seconds'] / 3600 + sum(map(_hours, run.needs))


def _plot(study, done, path):
    found = _percent(done, study.metric)
    columns, rows, label = len(study.tasks), len(study.arms), f'{_in_words(study.metric)}, %'
    size = (5.5 * columns, 4) if study.axis else (4 * columns + 1.5, 0.42 * rows + 1.3)
    figure = Figure(figsize=size, layout='constrained')
    for axes, task in zip(figure.subplots(1, columns, squeeze=False)[0], study.tasks):
        shown = {arm: list(found[arm, task].values()) for arm in study.arms if (arm, task) in found}
        if study.axis:
            _draw_lines(axes, shown, study)
            axes.set_ylabel(label)
        else:
            _draw_rows(axes, shown)
            axes.set_xlabel(label)
        axes.set_title(task)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _means_and_deviations(shown: dict) -> tuple[list[float], list[float]]:
    deviation = lambda each: statistics.stdev(each) if len(each) > 1 else 0.0
    return list(map(statistics.fmean, shown.values())), list(map(deviation, shown.values()))


def _draw_lines(axes, shown, study):
    lines = dict.fromkeys(study.arms[arm]['line'] for arm in shown)
    for line in lines:
        of_line = {arm: each for arm, each in shown.items() if study.arms[arm]['line'] == line}
        places = [study.arms[arm]['x'] for arm in of_line]
        means, deviations = _means_and_deviations(of_line)
        axes.errorbar(places, means, deviations, fmt='o-', capsize=3, label=line)
    axes.set_xlabel(study.axis)
    if len(lines) > 1:
        axes.legend(frameon=False)


def _draw_rows(axes, shown):
    means, deviations = _means_and_deviations(shown)
    axes.errorbar(means, list(shown), xerr=deviations, fmt='o', capsize=4)
    for arm, each in shown.items():
        axes.plot(each, [arm] * len(each), '|', color='grey', zorder=0)
    axes.margins(y=0.15)
    axes.invert_yaxis()


def _write_csv(done, workdir, output):
    rows, columns = [], {}
    for run in done:
        config = run.result['config']
        row = {
            'stage': run.stage,
            'arm': run.arm,
            'task': run.task,
            'seed': run.seed,
            'chooses': int(run.chooses),
            'lr': config.get('optimizer', {}).get('lr', ''),
            'steps': config.get('total_steps', ''),
            'batch_size': config.get('batch_size', ''),
            'seconds': run.result['seconds'],
            'folder': run.folder.relative_to(workdir),
        }
        row |= {name: f'{value:.6g}' for name, value in run.result['metrics'].items()}
        rows.append(row)
        columns |= row  # in the order in which they come
    with (output / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        writer.writerows(rows)


def _machine() -> str:
    device = jax.devices()[0]
    accelerators = ''
    if device.platform != 'cpu':
        accelerators = f', {jax.device_count()} x {device.device_kind}'
    versions = ', '.join(f'{name} {version(name)}' for name in VERSIONS)
    return (
        f'{machine()}, {os.cpu_count()} cores{accelerators}; '
        f'Python {platform.python_version()}, {versions}'
    )
