"""Speed, measured side by side with a peer in one run, in turns, so that both see the same machine
in the same mood.

masks   blockwise masks: our jitted function against the official algorithm as a NumPy loop, and
their share of a BEiT-B step, on one core input   images per second of a recipe's input, stage by
stage, against the Pillow pipelines of BEiT's official code, timm and torchvision step    images per
second of a pre-training step on the device at hand, and its share of what a matrix product reaches,
against PyTorch
"""

import argparse
import json
import os
from pathlib import Path

from beit_jax.errors import check
from beit_jax.performance.machine import machine
from beit_jax.performance.mask_benchmark import benchmark_masks
from beit_jax.tools import arguments

# of PyTorch; fused: scaled_dot_product_attention
PEERS = ('eager', 'eager-fused', 'compiled', 'compiled-fused')


def run(options: argparse.Namespace) -> None:
    check(
        not options.json or options.json.parent.is_dir(),
        f'--json={options.json}: its folder does not exist.',
    )
    check(options.repeats > 0, 'use at least 1 for --repeats.')
    result = {'masks': _run_masks, 'input': _run_input, 'step': _run_step}[options.what](options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + '\n')


def _run_masks(options) -> dict:
    check(options.batch > 0, 'use at least 1 for --batch.')
    result = benchmark_masks(options.batch, options.repeats)
    print(
        f'{result["machine"]}, {result["cores"]} core; jax {result["jax"]} on {result["device"]}; '
        f'{options.repeats} '
        f'repeats\n{"masks/s":10}{"median":>10}{"min":>10}{"max":>10}{"share of a step":>18}'
    )
    for name, speed in result['masks_per_second'].items():
        print(
            f'{name:10}{speed["median"]:10,.0f}{speed["min"]:10,.0f}{speed["max"]:10,.0f}{result["share_of_step"][name]:18.4%}'
        )
    print(
        f'ratio {result["ratio"]:.2f}; BEiT-B forward and backward, float32: '
        f'{result["step_seconds_per_image"]:.2f} s an image'
    )
    return result


def _run_input(options) -> dict:
    from beit_jax.performance.input_benchmark import BATCH, benchmark_input

    check(
        options.images >= BATCH and options.cores > 0,
        f'use at least {BATCH} for --images and 1 for --cores.',
    )
    result = {'machine': machine()} | benchmark_input(
        arguments.recipe_config(options), options.images, options.repeats, options.cores
    )
    print(
        f'{result["machine"]}, {result["cores"]} core(s); {result["task"]}, views '
        f'{", ".join(result["views"])}; {result["images"]} files of '
        f'{result["bytes_per_image"] / 1e3:.0f} KB; {result["repeats"]} repeats; the peer works '
        f'{result["peer"]}\n{"milliseconds of a core an image":32}{"median":>8}{"min":>8}{"max":>8}'
    )
    for name, spread in result['core_milliseconds'].items():
        print(
            f'{name:32}'
            + ''.join(f'{spread[key]:8.3f}' for key in ('median', 'min', 'max') if key in spread)
        )
    for name, ratio in result['ratio'].items():
        rates = [result['images_per_second_and_core'][key] for key in (name, f'{name}, its peer')]
        print(
            f'{name}: {rates[0]:,.0f} images/s and core, its peer {rates[1]:,.0f}; ratio '
            f'{ratio:.2f}'
        )
    print(
        'mean difference from Pillow, grey levels: '
        + ', '.join(
            f'{size} pixels {error:.3f}'
            for size, error in result['grey_levels_from_pillow'].items()
        )
    )
    return result


def _run_step(options) -> dict:
    from beit_jax.performance.step_benchmark import benchmark_step

    variants = () if options.peer is None else tuple(options.peer) or PEERS
    result = {'machine': machine()} | benchmark_step(
        arguments.recipe_config(options), options.repeats, variants
    )
    print(
        f'{result["machine"]}, {os.cpu_count()} cores; {result["devices"]} x {result["device"]}; '
        f'jax {result["jax"]}; {result["compute_dtype"]}, batch {result["batch_size"]}; '
        f'{result["repeats"]} repeats; a matrix product makes '
        f'{result["product_flops_per_second"] / 1e12:.3f} '
        f'TFLOP/s\n{"":54}{"median s":>10}{"min":>8}{"max":>8}{"images/s":>10}{"utilisation":>13}'
    )
    for row in result['rows']:
        print(
            f'{row["name"] + ": " + row["what"]:54}{row["seconds"]["median"]:10.3f}{row["seconds"]["min"]:8.3f}{row["seconds"]["max"]:8.3f}'
            f'{row["images_per_second"]:10,.1f}{row["utilisation"]:13.1%}'
        )
    for what, ratio in result['ratio'].items():
        print(f'{what}: the best of PyTorch takes {ratio:.2f} times as long')
    print(
        'seconds to compile: '
        + ', '.join(f'{name} {seconds:.0f}' for name, seconds in result['compile_seconds'].items())
        + '; memory: '
        + ', '.join(
            f'{name} {size / 1e9:.2f} GB' for name, size in result['peak_memory'].items() if size
        )
    )
    return result


def _arguments() -> argparse.ArgumentParser:
    parser = arguments.parser(
        'benchmark', __doc__, 'python -m beit_jax.tools.benchmark masks --json masks.json'
    )
    what = parser.add_subparsers(dest='what', required=True)
    masks = what.add_parser(
        'masks', help='blockwise masks against the official algorithm', epilog=parser.epilog
    )
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
    for each in (reading, step):
        arguments.add_config(each)
    for each in (masks, reading, step):
        each.add_argument('--json', type=Path, help='also write the result here')
        each.add_argument(
            '--repeats', type=int, default=5, help='of each way, in turns (default 5)'
        )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
