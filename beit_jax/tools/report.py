"""A run as one HTML page that opens in a browser and needs nothing besides: how it stands,
curves, pictures, evaluation, recipe, time and restarts, machine, versions."""

from pathlib import Path

from beit_jax.tools import arguments, outputs


def run(options) -> None:
    output = outputs.file('--output', options.output, [options.workdir], ('.html',))
    # here and not above: --help is to be there at once
    from beit_jax.reports.run import report

    made = report(Path(options.workdir))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(made)
    print(f'{len(made) / 1e6:.1f} MB -> {output}')


def _arguments():
    parser = arguments.parser(
        'report',
        __doc__,
        'python -m beit_jax.tools.report --workdir=runs/quickstart/pretrain --output=run.html',
    )
    parser.add_argument(
        '--workdir', required=True, type=arguments.path, help='work directory of a run'
    )
    parser.add_argument('--output', required=True, help='the HTML file to write')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
