"""Batches for the trainer: read, crop, flip and resize in parallel, each picture a pure function of (seed, example, number of the view).

A bad record (not an image, truncated, too small, unreadable) never shifts the others: another example takes its place, the same one
on every run.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import functools
import math
import os
from types import ModuleType

import numpy as np
import tensorflow as tf

from beit_jax.config import check
from beit_jax.data import tensorflow_images
from beit_jax.data.config import DataConfig, View
from beit_jax.data.rand_augment import fill_color, parse_policy, rand_augment
from beit_jax.data.sampler import Sampler, random_bits
from beit_jax.data.sources import Source, check_label
from beit_jax.data.transforms import DRAWS, MIN_SIDE, center_box, flipped, random_box, whole_box
from beit_jax.errors import RequestError

Batch = dict[str, np.ndarray]
SUBSTITUTES = 8  # examples that may take the place of a bad one; they are read only when it is bad
CHECKED = 32  # examples that check_source reads
_ENDLESS = 2**62  # steps
_BEGUN = 2  # batches that are made at a time, so that no thread waits for the last row of one
_PARTS = 4  # of a batch, for each thread
_BLACK = np.zeros([MIN_SIDE, MIN_SIDE, 3], np.uint8)


def image_ops(config: DataConfig) -> ModuleType:
    """What decodes and resizes: `tensorflow_images` or its like.

    Raises:
      RequestError: a library is not installed.
    """
    if config.image_ops == 'tensorflow':
        return tensorflow_images
    try:
        from beit_jax.data import simd_images
    except ImportError as error:
        raise RequestError(f'config.data.image_ops=simd takes simplejpeg and cykooz_resizer ({error}): install requirements.txt, or set '
                           'config.data.image_ops=tensorflow, which is slower.') from error
    return simd_images


def train_batches(source: Source, sampler: Sampler, views: Sequence[View], config: DataConfig, rows: np.ndarray,
                  start_step: int = 0) -> Iterator[Batch]:
    """Endless batches from `start_step` on: the `rows` (int [R]) of each global batch, randomly cropped and flipped.

    Yields:
      each view's name: uint8 [R, size, size, 3], one and the same crop; `label` int32 [R]; `index` int64 [R], the example that the
      sampler asked for; `view` uint32 [R], the number that seeds what is drawn for the picture (modulo 2 ** 32); `substituted` bool [R],
      true where that example was bad; `used` int64 [R], the one that is there instead; `valid` float32 [R], ones.

    Raises:
      RequestError: an example and all that could take its place are bad.
    """
    def examples(step):
        positions = sampler.positions(step, rows)
        return sampler.views(positions), sampler.examples(positions)

    def candidates(view, index):
        """`index`, then others drawn from (seed, view)."""
        yield index
        yield from (int(number % len(source)) for number in random_bits(SUBSTITUTES, sampler.seed, view))

    def box_and_flip(view):
        flip, *draws = ((random_bits(1 + DRAWS, sampler.seed, view, (0, 0, 0, 2)) >> np.uint64(11)) * 2.0 ** -53).tolist()
        return lambda height, width: random_box(draws, height, width, config.crop_scale, config.crop_ratio), config.flip and flip < 0.5

    def augment(picture, view, number):
        if not view.rand_augment:
            return picture
        return rand_augment(picture, parse_policy(view.rand_augment), sampler.seed, number, fill_color(config.mean))

    load = functools.partial(_load, source, image_ops(config), candidates, box_and_flip, augment, views)
    for batch in _batches(range(start_step, _ENDLESS), examples, load, views, len(rows), config):
        used = _checked_used(batch, source)
        for index in batch['index'][used < 0]:
            raise RequestError(f'{source.name(index)}: {_flaw(source, index, config) or "unreadable"}. {SUBSTITUTES} others, drawn to take its '
                               'place, are bad too. Remove or repair the bad files in config.data.path.')
        yield batch | {'substituted': used != batch['index'], 'valid': np.ones(len(rows), np.float32)}


def evaluate_batches(source: Source, batch_size: int, views: Sequence[View], config: DataConfig, rows: np.ndarray,
                     share: float = 224 / 256) -> Iterator[Batch]:
    """One pass over `source` in order, in batches as `train_batches` makes them, of the central square of `share` of the shorter side.

    The last batch is filled up with example 0. `valid` is 0 there, and for a bad example, whose pixels and label are 0 and
    `substituted` true, `used` -1. Every host yields ceil(N / batch_size) batches.
    """
    def examples(step):
        positions = step * batch_size + np.asarray(rows, np.int64)
        return positions, np.where(positions < len(source), positions, 0)

    def box_and_flip(_):
        return lambda height, width: center_box(height, width, share), False

    load = functools.partial(_load, source, image_ops(config), lambda _, index: [index], box_and_flip, lambda picture, *_: picture, views)
    steps = range(math.ceil(len(source) / batch_size))
    for step, batch in zip(steps, _batches(steps, examples, load, views, len(rows), config), strict=True):
        used, positions = _checked_used(batch, source), examples(step)[0]
        good = used >= 0
        yield batch | {'substituted': ~good, 'valid': (good & (positions < len(source))).astype(np.float32)}


def check_source(source: Source, config: DataConfig) -> None:
    """Decodes up to 32 evenly spread examples in full.

    Raises:
      RequestError: the share of bad ones is above `config.max_bad_share`. One alone does not count, unless it is all there is.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, CHECKED).round().astype(int))
    bad = [f'{source.name(index)} ({flaw})' for index in indices if (flaw := _flaw(source, index, config))]
    share = 0.0 if len(bad) == 1 < len(indices) else len(bad) / len(indices)
    check(share <= config.max_bad_share,
          f'{len(bad)} of {len(indices)} examples looked at cannot be used: {", ".join(bad[:3])}{", ..." * (len(bad) > 3)}.\n'
          f'Remove or repair them, or raise config.data.max_bad_share ({config.max_bad_share:g}).')


def _checked_used(batch, source):
    """Which examples a batch uses, int64 [R], -1 for none; raises RequestError where one has a label that no class has."""
    used, labels = batch['used'], batch['label']
    for row in np.flatnonzero((used >= 0) & ((labels < 0) | (labels >= max(1, len(source.class_names))))):
        check_label(source, used[row], labels[row])
    return used


def _flaw(source, index, config):
    try:
        image_ops(config).decode_crop(source.read(int(index)).image, whole_box)  # any other error of `read` is a bug and shows as itself
    except OSError as error:
        return error.strerror or str(error)
    return None


def _load(source: Source, images: ModuleType, candidates: Callable[..., Iterable[int]], box_and_flip: Callable, augment: Callable,
          views: Sequence[View], number: int, index: int) -> list:
    """The pictures of the views, the label, and the index of the first readable of `candidates(number, index)`, which they show; or, where
    none is, black pictures, 0 and -1."""
    box_of, flip = box_and_flip(number)
    for used in candidates(number, index):
        try:
            image, label = source.read(used)
            crop = images.decode_crop(image, box_of)
            break
        except OSError:
            continue
    else:
        crop, label, used, flip = _BLACK, 0, -1, False
    turn = flipped if flip else lambda picture: picture  # after resizing: there is less to turn
    return [*(augment(turn(picture), view, number) for picture, view in zip(images.resize(crop, views), views)), label, used]


def _aligned(shape):
    """np.empty, uint8, at an address that TensorFlow can use as it is."""
    size, alignment = math.prod(shape), 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start:start + size].reshape(shape)


def _batches(steps: range, examples: Callable, load: Callable, views: Sequence[View], num_rows: int, config: DataConfig) -> Iterator[Batch]:
    """Batches of `num_rows` of what `load(view number, index)` makes, in order, for the (view numbers, indices) of `examples(step)`."""
    workers, failures = config.workers or len(os.sched_getaffinity(0)), []
    pool = concurrent.futures.ThreadPoolExecutor(workers)  # what reads, decodes and resizes releases the interpreter's lock

    def make(step):
        numbers, indices = examples(step)
        batch = [*(_aligned([num_rows, view.size, view.size, 3]) for view in views), np.empty(num_rows, np.int32), np.empty(num_rows, np.int64)]

        def fill(rows):
            for row in rows.tolist():
                for array, value in zip(batch, load(int(numbers[row]), int(indices[row]))):
                    array[row] = value
        try:
            for _ in pool.map(fill, np.array_split(np.arange(num_rows), min(num_rows, _PARTS * workers))):
                pass
        except Exception as error:
            failures.append(error)
            raise
        return [*batch, indices, numbers.astype(np.uint32)]

    types = [tf.uint8] * len(views) + [tf.int32, tf.int64, tf.int64, tf.uint32]
    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(lambda step: tf.numpy_function(make, [step], types),
                                                                 num_parallel_calls=_BEGUN, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = _BEGUN  # the trainer's own threads are not TensorFlow's to take
    try:
        for arrays in dataset.prefetch(config.prefetch).with_options(options).as_numpy_iterator():
            yield dict(zip([*(view.name for view in views), 'label', 'used', 'index', 'view'], arrays, strict=True))
    except tf.errors.OpError as error:
        raise (failures or [error])[0] from None  # as itself, not as TensorFlow wraps it
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
