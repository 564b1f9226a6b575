"""How fast is it, beside a peer? Both are measured in one run, in turns, so that they see the same
machine in the same mood.

masks   blockwise masks: our jitted function against the official algorithm as a NumPy loop, and
        their share of a BEiT-B step, on one core
input   images per second of a recipe's input, stage by stage, against the Pillow pipelines of
        BEiT's official code, timm and torchvision
step    images per second of a pre-training step on the device at hand, and its share of what a
        matrix product reaches, against PyTorch
gpu     all that is to be measured on a GPU, in eight minutes: numerics of attention, base and large
        against PyTorch, flags, memory, determinism, a profile
"""

import argparse

from beit_jax.errors import check
from beit_jax.machines.processor import machine
from beit_jax.performance import reports
from beit_jax.performance.mask_benchmark import benchmark_masks
from beit_jax.runtime import take_huge_pages
from beit_jax.tools import arguments, config_option, outputs

# of PyTorch; fused: scaled_dot_product_attention
PEERS = ('eager', 'eager-fused', 'compiled', 'compiled-fused')


def run(options: argparse.Namespace) -> None:
    if options.what == 'gpu':
        return _run_gpu(options)
    json_file = outputs.file('--json', options.json, [getattr(options, 'config', '')])
    check(options.repeats > 0, 'use at least 1 for --repeats.')
    result = {'masks': _run_masks, 'input': _run_input, 'step': _run_step}[options.what](options)
    outputs.write(json_file, result, indent=2)


def _run_masks(options) -> dict:
    check(options.batch > 0, 'use at least 1 for --batch.')
    print(reports.of_masks(result := benchmark_masks(options.batch, options.repeats)))
    return result


def _run_input(options) -> dict:
    from beit_jax.performance.input_benchmark import BATCH, benchmark_input

    check(
        options.images >= BATCH and options.cores > 0,
        f'use at least {BATCH} for --images and 1 for --cores.',
    )
    asked = config_option.read(options), options.images, options.repeats, options.cores
    result = {'machine': machine()} | benchmark_input(*asked)
    print(reports.of_input(result))
    return result


def _run_step(options) -> dict:
    from beit_jax.performance.step_benchmark import benchmark_step

    peers, config = options.peer, config_option.read(options)
    variants = () if peers is None else tuple(peers) or PEERS
    result = {'machine': machine()} | benchmark_step(config, options.repeats, variants)
    print(reports.of_step(result))
    return result


def _run_gpu(options) -> None:
    from beit_jax.performance.gpu_benchmark import benchmark_gpu

    check(options.seconds > 0, f'--seconds is {options.seconds}: use a number above 0.')
    output = outputs.folder('--output', options.output)
    print(benchmark_gpu(output, options.seconds, options.rehearse))


def _arguments() -> argparse.ArgumentParser:
    parser = arguments.parser(
        'benchmark', __doc__, 'python -m beit_jax.tools.benchmark masks --json masks.json'
    )
    what = parser.add_subparsers(dest='what', required=True)
    masks = what.add_parser('masks', help='blockwise masks against the official algorithm')
    masks.add_argument('--batch', type=int, default=256, help='masks a call (default 256)')
    reading = what.add_parser(
        'input',
        help="a recipe's input against PyTorch's",
        epilog='example: python -m beit_jax.tools.benchmark input '
        '--config=configs/pretrain_imagenet1k.py --config.data.path=/imagenet/train',
    )
    reading.add_argument(
        '--images',
        type=int,
        default=500,
        help='that are read, evenly spread over the data set (default 500)',
    )
    reading.add_argument(
        '--cores', type=int, default=1, help='for our pipeline; the peers have one (default 1)'
    )
    step = what.add_parser(
        'step',
        help="a recipe's pre-training step against PyTorch's",
        epilog='example: python -m beit_jax.tools.benchmark step '
        '--config=configs/pretrain_imagenet1k.py --config.batch_size=256 --peer',
    )
    step.add_argument(
        '--peer', nargs='*', choices=PEERS, help='variants of PyTorch; without a name all'
    )
    gpu = what.add_parser('gpu', help='all that is to be measured on a GPU')
    gpu.add_argument('--output', required=True, help='a folder; parts that it holds are not run')
    gpu.add_argument('--seconds', type=float, default=480.0, help='in all (default 480)')
    gpu.add_argument('--rehearse', action='store_true', help='with tiny sizes, on any device')
    for each in (reading, step):
        config_option.add(each)
    for each in (masks, reading, step):
        each.add_argument('--json', help='also write the result here')
        each.add_argument(
            '--repeats', type=int, default=5, help='of each way, in turns (default 5)'
        )
    return parser


if __name__ == '__main__':
    take_huge_pages()
    arguments.main(run, _arguments())
