"""The curves of a run: every metric of metrics.jsonl over the steps, as one picture;
evaluations are dots. With --reference, another run's curves lie beside them:
docs/results/quickstart has those of a normal run of the quickstart."""

import os
from pathlib import Path

from beit_jax.errors import check
from beit_jax.reports.curves import draw, names_of, read_metrics
from beit_jax.tools import arguments, outputs

FILE = 'metrics.jsonl'


def run(options) -> None:
    inputs = [Path(folder, FILE) for folder in (options.workdir, options.reference)]
    output = outputs.file('--output', options.output, inputs, ('.png', '.pdf', '.svg'))
    series = _read('--workdir', options.workdir)
    reference = _read('--reference', options.reference) if options.reference else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(series, reference, names_of(series), columns=3).savefig(output, dpi=100)
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
