"""Does a recipe's training step fit a TPU or a GPU, and how fast is it? Asked on a machine without
one.

It compiles the real step for the topology, takes minutes, and needs the compiler:
pip install "jax[tpu]", or "jax[cuda13]" in an environment of its own. With an empty
config.tokenizer.path, pre-training is planned on given tokens; with a tokenizer or --dall_e, that
is part of the step; so is VQ-KD's teacher with a config.teacher.path. With config.mesh.slice=N the
chips are N slices of a TPU's topology. On a TPU all figures are estimates of its compiler: cycles
do not count what chips wait for one another. On GPUs the time is a roofline over the compiled
program, so at best what a step takes.
"""

import argparse
import os

from beit_jax.performance.plan import EXAMPLES, plan, search_batch
from beit_jax.performance.reports import of_plan
from beit_jax.runtime import set_deterministic
from beit_jax.tools import arguments, config_option, outputs

# Where there is no GPU to try them on, XLA gives products to Triton in its smallest tiles; with one
# most go to cuBLAS.
WITHOUT_GPU = '--xla_gpu_enable_triton_gemm=false'


def run(options: argparse.Namespace) -> None:
    flags = os.environ.get('XLA_FLAGS', '')
    if WITHOUT_GPU not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {WITHOUT_GPU}'.strip()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    json_file = outputs.file('--json', options.json, [options.config])
    config = config_option.read(options)
    if config.deterministic:
        set_deterministic()
    find = search_batch if options.search_batch else plan
    result = find(config, options.topology, options.dall_e)
    print(of_plan(result))
    if options.search_batch:
        print(
            f'the largest batch that fits: {result["largest_images_per_chip"]} images a '
            f'{result["device"]}; the fastest (above): {result["fastest_images_per_chip"]}'
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
