"""The curves of a run: every metric of metrics.jsonl over the steps, as one picture;
evaluations are dots. With --reference, another run's curves lie beside them:
docs/results/quickstart has those of a normal run of the quickstart."""

import math
import os
from pathlib import Path
import sys

import matplotlib
from matplotlib.figure import Figure

from beit_jax.errors import check
from beit_jax.tools import arguments, outputs
from beit_jax.whole_files import metric_lines

matplotlib.use('Agg')
FILE = 'metrics.jsonl'
# the last three are other units of images_per_second
LEFT_OUT = (
    'step',
    'bad_records',
    'skipped_steps',
    'skipped_in_a_row',
    'step_seconds',
    'images_per_second_per_device',
    'tflops_per_second_per_device',
)


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """{metric: (steps, values)} of a metrics.jsonl."""
    series = {}
    rows, others = metric_lines(path)
    if others:
        print(f'{path}: {len(others)} lines are damaged and left out', file=sys.stderr)
    for row in rows:
        for name in row.keys() - set(LEFT_OUT):
            steps, values = series.setdefault(name, ([], []))
            not_finite = row[name] is None
            steps.append(row['step'])
            values.append(math.nan if not_finite else row[name])
    return series


def draw(series: dict, reference: dict) -> Figure:
    names = sorted(name for name in series if not name.startswith('eval/'))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout='constrained')
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        if name in reference:
            axes.plot(*reference[name], color='lightgrey', linewidth=3, label='reference')
            axes.legend(frameon=False)
        axes.plot(*series[name])
        if f'eval/{name}' in series:
            axes.plot(*series[f'eval/{name}'], 'o', label='held out')
            axes.legend(frameon=False)
        axes.set_title(name.replace('_', ' '))
        axes.set_xlabel('step')
        axes.grid(alpha=0.3)
    return figure


def run(options) -> None:
    inputs = [Path(folder, FILE) for folder in (options.workdir, options.reference)]
    output = outputs.file('--output', options.output, inputs, ('.png', '.pdf', '.svg'))
    series = _read('--workdir', options.workdir)
    reference = _read('--reference', options.reference) if options.reference else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(series, reference).savefig(output, dpi=100)
    print(f'{len(series)} curves -> {output}')


def _read(option, folder):
    path = Path(folder) / FILE
    check(
        path.is_file(),
        f'{option}={folder}: there is no {FILE}; give the work directory of a run.',
    )
    series = read_metrics(path)
    check(bool(series), f'{path} is empty: the run has not logged a step yet.')
    return series


def _arguments():
    parser = arguments.parser(
        'curves',
        __doc__,
        'python -m beit_jax.tools.curves --workdir runs/quickstart/pretrain --output curves.png',
    )
    parser.add_argument(
        '--workdir', required=True, type=arguments.path, help='work directory of a run'
    )
    parser.add_argument(
        '--reference',
        default='',
        type=os.path.expanduser,
        help='work directory of a run to compare with (none)',
    )
    parser.add_argument('--output', required=True, help='the PNG to write')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
