"""Speed, measured side by side with a peer in one run, in turns, so that both see the same machine in the same mood.

masks   blockwise masks: our jitted function against the official algorithm as a NumPy loop, and their share of a BEiT-B step, on one core
input   images per second of a recipe's input, stage by stage, against the Pillow pipelines of BEiT's official code, timm and torchvision
step    images per second of a pre-training step on the device at hand, and its share of what a matrix product reaches, against PyTorch
"""
import argparse
import json
import math
import os
from pathlib import Path
import platform
import random
import statistics
import time

import numpy as np

from beit_jax.config import check
from beit_jax.tools import arguments

PEERS = ('eager', 'eager-fused', 'compiled', 'compiled-fused')  # of PyTorch; fused: scaled_dot_product_attention
GRID, ROUNDS, STEP_BATCH = (14, 14), 10, 4  # patches; batches of masks a repeat; images a step


def official_mask(rng: random.Random, height: int, width: int, config) -> np.ndarray:
    """One blockwise mask, int [height, width], as masking_generator.py:55-92 draws it, in Python and NumPy; config: a MaskConfig."""
    mask, wanted, log_aspect = np.zeros((height, width), int), config.patches, math.log(config.min_aspect)
    while wanted:
        for _ in range(10):
            area, aspect = rng.uniform(config.min_block, wanted), math.exp(rng.uniform(log_aspect, -log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                block = mask[top:top + h, left:left + w]
                added = h * w - int(block.sum())
                if 0 < added <= wanted:
                    block[:] = 1
                    wanted -= added
                    break
        else:
            break
    return mask


def benchmark_masks(batch: int, repeats: int) -> dict:
    """Masks per second of both, and what they add to a training step."""
    if hasattr(os, 'sched_setaffinity'):  # before jax starts its threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import jax

    from beit_jax.images.masking import MaskConfig, draw_masks
    config, rng = MaskConfig(), random.Random(0)
    draw = jax.jit(lambda key: draw_masks(jax.random.split(key, batch), config, GRID))
    ways = {'ours': lambda seed: jax.block_until_ready(draw(jax.random.key(seed))),
            'official': lambda _: [official_mask(rng, *GRID, config) for _ in range(batch)]}
    ways['ours'](0)  # compiles
    seconds = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_time(lambda way=way: [way(repeat * ROUNDS + i) for i in range(ROUNDS)]) / (ROUNDS * batch))
    step = _seconds_of_a_step(repeats)
    per_mask = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        'machine': _machine(), 'cores': 1 if hasattr(os, 'sched_setaffinity') else os.cpu_count(), 'device': jax.devices()[0].device_kind,
        'jax': jax.__version__, 'batch': batch, 'repeats': repeats,
        'masks_per_second': {name: {'median': 1 / per_mask[name], 'min': 1 / max(times), 'max': 1 / min(times)}
                             for name, times in seconds.items()},
        'ratio': per_mask['official'] / per_mask['ours'], 'step_seconds_per_image': step,
        'share_of_step': {name: per_mask[name] / step for name in ways},
    }


def _seconds_of_a_step(repeats: int) -> float:
    """Seconds per image, forward and backward, float32, of a BEiT-B whose tokens are drawn at random."""
    from flax import nnx
    import jax

    from beit_jax.tasks.pretrain import Config, make_on_given_tokens
    task, rng = make_on_given_tokens(Config(total_steps=1, compute_dtype='float32')), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * 0.02, nnx.to_pure_dict(task.abstract))
    batch = {'image': rng.integers(0, 256, (STEP_BATCH, 224, 224, 3), np.uint8),
             'tokens': rng.integers(0, 8192, (STEP_BATCH, 196), np.uint16), 'view': np.arange(STEP_BATCH, dtype=np.uint32),
             'valid': np.ones(STEP_BATCH, np.float32)}
    keys_B = jax.random.split(jax.random.key(0), STEP_BATCH)
    step = jax.jit(jax.grad(lambda params: task.loss(params, batch, keys_B, progress=0.0, train=True), has_aux=True))
    params = jax.device_put(params)
    jax.block_until_ready(step(params))
    return statistics.median(_time(lambda: jax.block_until_ready(step(params))) for _ in range(repeats)) / STEP_BATCH


def _time(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _machine() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or platform.machine()


def run(options: argparse.Namespace) -> None:
    check(not options.json or options.json.parent.is_dir(), f'--json={options.json}: its folder does not exist.')
    check(options.repeats > 0, 'use at least 1 for --repeats.')
    result = {'masks': _run_masks, 'input': _run_input, 'step': _run_step}[options.what](options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + '\n')


def _run_masks(options) -> dict:
    check(options.batch > 0, 'use at least 1 for --batch.')
    result = benchmark_masks(options.batch, options.repeats)
    print(f'{result["machine"]}, {result["cores"]} core; jax {result["jax"]} on {result["device"]}; {options.repeats} repeats\n'
          f'{"masks/s":10}{"median":>10}{"min":>10}{"max":>10}{"share of a step":>18}')
    for name, speed in result['masks_per_second'].items():
        print(f'{name:10}{speed["median"]:10,.0f}{speed["min"]:10,.0f}{speed["max"]:10,.0f}{result["share_of_step"][name]:18.4%}')
    print(f'ratio {result["ratio"]:.2f}; BEiT-B forward and backward, float32: {result["step_seconds_per_image"]:.2f} s an image')
    return result


def _run_input(options) -> dict:
    from beit_jax.tools.input_benchmark import BATCH, benchmark_input
    check(options.images >= BATCH and options.cores > 0, f'use at least {BATCH} for --images and 1 for --cores.')
    result = {'machine': _machine()} | benchmark_input(arguments.recipe_config(options), options.images, options.repeats, options.cores)
    print(f'{result["machine"]}, {result["cores"]} core(s); {result["task"]}, views {", ".join(result["views"])}; {result["images"]} files of '
          f'{result["bytes_per_image"] / 1e3:.0f} KB; {result["repeats"]} repeats; the peer works {result["peer"]}\n'
          f'{"milliseconds of a core an image":32}{"median":>8}{"min":>8}{"max":>8}')
    for name, spread in result['core_milliseconds'].items():
        print(f'{name:32}' + ''.join(f'{spread[key]:8.3f}' for key in ('median', 'min', 'max') if key in spread))
    for name, ratio in result['ratio'].items():
        rates = [result['images_per_second_and_core'][key] for key in (name, f'{name}, its peer')]
        print(f'{name}: {rates[0]:,.0f} images/s and core, its peer {rates[1]:,.0f}; ratio {ratio:.2f}')
    print('mean difference from Pillow, grey levels: '
          + ', '.join(f'{size} pixels {error:.3f}' for size, error in result['grey_levels_from_pillow'].items()))
    return result


def _run_step(options) -> dict:
    from beit_jax.tools.step_benchmark import benchmark_step
    variants = () if options.peer is None else tuple(options.peer) or PEERS
    result = {'machine': _machine()} | benchmark_step(arguments.recipe_config(options), options.repeats, variants)
    print(f'{result["machine"]}, {os.cpu_count()} cores; {result["devices"]} x {result["device"]}; jax {result["jax"]}; '
          f'{result["compute_dtype"]}, batch {result["batch_size"]}; {result["repeats"]} repeats; a matrix product makes '
          f'{result["product_flops_per_second"] / 1e12:.3f} TFLOP/s\n'
          f'{"":54}{"median s":>10}{"min":>8}{"max":>8}{"images/s":>10}{"utilisation":>13}')
    for row in result['rows']:
        print(f'{row["name"] + ": " + row["what"]:54}{row["seconds"]["median"]:10.3f}{row["seconds"]["min"]:8.3f}{row["seconds"]["max"]:8.3f}'
              f'{row["images_per_second"]:10,.1f}{row["utilisation"]:13.1%}')
    for what, ratio in result['ratio'].items():
        print(f'{what}: the best of PyTorch takes {ratio:.2f} times as long')
    print('seconds to compile: ' + ', '.join(f'{name} {seconds:.0f}' for name, seconds in result['compile_seconds'].items())
          + '; memory: ' + ', '.join(f'{name} {size / 1e9:.2f} GB' for name, size in result['peak_memory'].items() if size))
    return result


def _arguments() -> argparse.ArgumentParser:
    parser = arguments.parser('benchmark', __doc__, 'python -m beit_jax.tools.benchmark masks --json masks.json')
    what = parser.add_subparsers(dest='what', required=True)
    masks = what.add_parser('masks', help='blockwise masks against the official algorithm', epilog=parser.epilog)
    masks.add_argument('--batch', type=int, default=256, help='masks a call (default 256)')
    reading = what.add_parser('input', help="a recipe's input against PyTorch's", epilog='example: python -m beit_jax.tools.benchmark input '
                              '--config=configs/pretrain_imagenet1k.py --config.data.path=/imagenet/train')
    reading.add_argument('--images', type=int, default=500, help='that are read, evenly spread over the data set (default 500)')
    reading.add_argument('--cores', type=int, default=1, help='for our pipeline; the peers have one (default 1)')
    step = what.add_parser('step', help="a recipe's pre-training step against PyTorch's", epilog='example: python -m '
                           'beit_jax.tools.benchmark step --config=configs/pretrain_imagenet1k.py --config.batch_size=256 --peer')
    step.add_argument('--peer', nargs='*', choices=PEERS, help='variants of PyTorch; without a name all')
    for each in (reading, step):
        arguments.add_config(each)
    for each in (masks, reading, step):
        each.add_argument('--json', type=Path, help='also write the result here')
        each.add_argument('--repeats', type=int, default=5, help='of each way, in turns (default 5)')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
