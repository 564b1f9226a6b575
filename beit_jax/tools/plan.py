"""Does a recipe's training step fit a TPU, and how fast is it? The TPU's own compiler says so,
on a machine without one.

It compiles the real step for the topology, takes minutes, and needs the compiler:
pip install "jax[tpu]". With an empty config.tokenizer.path, pre-training is planned on given
tokens; with a tokenizer or --dall_e, that is part of the step. With config.mesh.slice=N the chips
are N slices of the topology. All figures are estimates of the compiler: cycles do not count what
chips wait for one another.
"""

import argparse
import os

from beit_jax.performance.plan import EXAMPLES, plan, search_batch
from beit_jax.performance.reports import of_plan
from beit_jax.tools import arguments, config_option, outputs

# There is no TPU for libtpu to ask, to complain of not finding, or to take from others that plan at
# the same time.
WITHOUT_TPU = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def run(options: argparse.Namespace) -> None:
    for name, value in WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    json_file = outputs.file('--json', options.json, [options.config])
    find = search_batch if options.search_batch else plan
    result = find(config_option.read(options), options.topology, options.dall_e)
    print(of_plan(result))
    if options.search_batch:
        print(
            f'the largest batch that fits: {result["largest_images_per_chip"]} images a chip; the '
            f'fastest (above): {result["fastest_images_per_chip"]}'
        )
    outputs.write(json_file, result, indent=2)


def _arguments() -> argparse.ArgumentParser:
    parser = arguments.parser(
        'plan',
        __doc__,
        'python -m beit_jax.tools.plan --config=configs/pretrain_imagenet1k.py --topology=v5e:4x4',
    )
    config_option.add(parser)
    parser.add_argument('--topology', required=True, help=f'{EXAMPLES}, ...')
    parser.add_argument(
        '--dall_e',
        action='store_true',
        help="where config.tokenizer.path is empty, with DALL-E's tokenizer in the step",
    )
    parser.add_argument(
        '--search-batch',
        action='store_true',
        help='find the largest batch that fits and the fastest one',
    )
    parser.add_argument('--json', help='also write the result here')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
