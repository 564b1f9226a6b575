"""Blockwise masks: our jitted function against the official algorithm as a NumPy loop, and their
share of a BEiT-B step, on one core."""

import math
import os
import random
import statistics
import time

import numpy as np

from beit_jax.machines.processor import machine

GRID, ROUNDS, STEP_BATCH = (14, 14), 10, 4  # patches; batches of masks a repeat; images a step


def official_mask(rng: random.Random, height: int, width: int, config) -> np.ndarray:
    """One blockwise mask, int [height, width], as masking_generator.py:55-92 draws it, in Python
    and NumPy; config: a MaskConfig."""
    mask, wanted = np.zeros((height, width), int), config.patches
    log_aspect = math.log(config.min_aspect)
    while wanted:
        for _ in range(10):
            area = rng.uniform(config.min_block, wanted)
            aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                block = mask[top : top + h, left : left + w]
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
    ways = {
        'ours': lambda seed: jax.block_until_ready(draw(jax.random.key(seed))),
        'official': lambda _: [official_mask(rng, *GRID, config) for _ in range(batch)],
    }
    ways['ours'](0)  # compiles
    seconds = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            seeds = range(repeat * ROUNDS, (repeat + 1) * ROUNDS)
            seconds[name].append(_time(lambda: list(map(way, seeds))) / (ROUNDS * batch))
    step = _seconds_of_a_step(repeats)
    per_mask = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        'machine': machine(),
        'cores': 1 if hasattr(os, 'sched_setaffinity') else os.cpu_count(),
        'device': jax.devices()[0].device_kind,
        'jax': jax.__version__,
        'batch': batch,
        'repeats': repeats,
        'masks_per_second': {
            name: {'median': 1 / per_mask[name], 'min': 1 / max(times), 'max': 1 / min(times)}
            for name, times in seconds.items()
        },
        'ratio': per_mask['official'] / per_mask['ours'],
        'step_seconds_per_image': step,
        'share_of_step': {name: per_mask[name] / step for name in ways},
    }


def _seconds_of_a_step(repeats: int) -> float:
    """Seconds per image, forward and backward, float32, of a BEiT-B on tokens drawn at random."""
    from flax import nnx
    import jax

    from beit_jax.tasks.pretrain import Config, make_on_given_tokens

    task = make_on_given_tokens(Config(total_steps=1, compute_dtype='float32'))
    rng = np.random.default_rng(0)
    weights = lambda leaf: rng.standard_normal(leaf.shape, np.float32) * 0.02
    params = jax.tree.map(weights, nnx.to_pure_dict(task.abstract))
    batch = {
        'image': rng.integers(0, 256, (STEP_BATCH, 224, 224, 3), np.uint8),
        'tokens': rng.integers(0, 8192, (STEP_BATCH, 196), np.uint16),
        'view': np.arange(STEP_BATCH, dtype=np.uint32),
        'grey': np.full(STEP_BATCH, 0.5, np.float32),
        'valid': np.ones(STEP_BATCH, np.float32),
    }
    keys_B = jax.random.split(jax.random.key(0), STEP_BATCH)
    loss = lambda params: task.loss(params, batch, keys_B, progress=0.0, train=True)
    step, params = jax.jit(jax.grad(loss, has_aux=True)), jax.device_put(params)
    run = lambda: jax.block_until_ready(step(params))
    run()  # compiles
    return statistics.median(_time(run) for _ in range(repeats)) / STEP_BATCH


def _time(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
