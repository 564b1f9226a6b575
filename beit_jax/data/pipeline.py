"""Batches for the trainer: read, crop, flip and resize in parallel, each picture a pure function of (seed, example, number of the view).

A bad record (not an image, truncated, too small, unreadable) never shifts the others: another example takes its place, the same one
on every run.
"""
from collections.abc import Callable, Iterator, Sequence
import functools
import math
import os

import numpy as np
import tensorflow as tf

from beit_jax.config import check
from beit_jax.data import transforms
from beit_jax.data.config import DataConfig, View
from beit_jax.data.rand_augment import parse_policy, rand_augment
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources import Example, Source, check_label
from beit_jax.errors import RequestError

Batch = dict[str, np.ndarray]
SUBSTITUTES = 8  # examples that may take the place of a bad one; they are read only when it is bad
CHECKED = 32  # examples that check_source reads
_ENDLESS = 2**62  # steps
_NO_PIXELS = np.zeros([0, 0, 3], np.uint8)
_BLACK = Example(np.zeros([transforms.MIN_SIDE, transforms.MIN_SIDE, 3], np.uint8), 0)


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

    def candidate(view, index, attempt):
        """`index`, then others drawn from (seed, view), then -1."""
        if not 0 < attempt <= SUBSTITUTES:
            return -1 if attempt else index
        key = np.array([sampler.seed, view], np.int64).astype(np.uint64)
        return int(np.random.Philox(key=key).random_raw(int(attempt))[-1] % len(source))

    def box_and_flip(view):
        seed, flip_seed = tf.stack([sampler.seed, view]), tf.stack([sampler.seed, -1 - view])  # the crop's seed has no negative one
        flip = config.flip & (tf.random.stateless_uniform([], flip_seed, alg='philox') < 0.5)
        return lambda height, width: transforms.random_box(seed, height, width, config.crop_scale, config.crop_ratio), flip

    def augment(picture, view, number):
        if not view.rand_augment:
            return picture
        policy, fill = parse_policy(view.rand_augment), tuple(min(255, round(255 * mean)) for mean in config.mean)
        change = lambda pixels, number: rand_augment(pixels, policy, sampler.seed, int(number), fill)
        return tf.ensure_shape(tf.numpy_function(change, [picture, number], tf.uint8), picture.shape)

    load = functools.partial(_first_readable, source, candidate, box_and_flip, augment, views)
    for batch in _batches(range(start_step, _ENDLESS), examples, load, len(rows), config):
        used = _checked_used(batch, source)
        for index in batch['index'][used < 0]:
            raise RequestError(f'{source.name(index)}: {_flaw(source, index) or "unreadable"}. {SUBSTITUTES} others, drawn to take its '
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
        return lambda height, width: transforms.center_box(height, width, share), tf.constant(False)

    load = functools.partial(_first_readable, source, lambda _, index, attempt: -1 if attempt else index, box_and_flip,
                             lambda picture, *_: picture, views)
    steps = range(math.ceil(len(source) / batch_size))
    for step, batch in zip(steps, _batches(steps, examples, load, len(rows), config), strict=True):
        used, positions = _checked_used(batch, source), examples(step)[0]
        good = used >= 0
        yield batch | {'substituted': ~good, 'valid': (good & (positions < len(source))).astype(np.float32)}


def check_source(source: Source, config: DataConfig) -> None:
    """Decodes up to 32 evenly spread examples in full.

    Raises:
      RequestError: the share of bad ones is above `config.max_bad_share`. One alone does not count, unless it is all there is.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, CHECKED).round().astype(int))
    bad = [f'{source.name(index)} ({flaw})' for index in indices if (flaw := _flaw(source, index))]
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


def _flaw(source, index):
    try:
        return transforms.find_flaw(source.read(int(index)).image)  # any other error of `read` is a bug and shows as itself
    except OSError as error:
        return error.strerror or str(error)


def _first_readable(source: Source, candidate: Callable, box_and_flip: Callable, augment: Callable, views, view_number,
                    index) -> tf.data.Dataset:
    """A dataset of one element, from the first readable example of `candidate(view_number, index, attempt)`, attempt 0, 1, ...

    `used` says which it is; -1: none, and a black picture.
    """
    def read(*view_index_attempt):
        used = candidate(*view_index_attempt)
        try:
            image, label = source.read(int(used)) if used >= 0 else _BLACK
        except OSError:
            image, label = b'', 0
        encoded, pixels = (b'', image) if isinstance(image, np.ndarray) else (image, _NO_PIXELS)
        return b'' if transforms.header_flaw(image) else encoded, pixels, np.int32(label), np.int64(used)  # nothing is too small to decode

    def attempt(number):
        read_types = [tf.string, tf.uint8, tf.int32, tf.int64]
        encoded, pixels, label, used = tf.numpy_function(read, [view_number, index, number], read_types)
        box_of, flip = box_and_flip(view_number)
        crop = transforms.decode_crop(tf.ensure_shape(encoded, []), box_of, tf.ensure_shape(pixels, [None, None, 3]))
        crop = tf.cond(flip, lambda: tf.reverse(crop, [1]), lambda: crop)
        pictures = {view.name: augment(transforms.resize(crop, view), view, view_number) for view in views}
        return {**pictures, 'label': tf.ensure_shape(label, []), 'index': index, 'view': tf.cast(view_number, tf.uint32),
                'used': tf.ensure_shape(used, [])}

    return tf.data.Dataset.range(SUBSTITUTES + 2).map(attempt).ignore_errors().take(1)


def _batches(steps: range, examples: Callable, load: Callable, num_rows: int, config: DataConfig) -> Iterator[Batch]:
    """Batches of `num_rows` elements `load(view number, index)`, in order, for the (view numbers, indices) of `examples(step)`."""
    workers = config.workers or len(os.sched_getaffinity(0))

    def rows(step):
        return [tf.ensure_shape(each, [num_rows]) for each in tf.numpy_function(examples, [step], [tf.int64, tf.int64])]

    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(rows).unbatch()  # from_generator would change the process's malloc
    # Not map: only a dataset per example can skip errors, and interleaving those costs nothing more (measured).
    dataset = dataset.interleave(load, cycle_length=workers, block_length=1, num_parallel_calls=workers, deterministic=True)
    dataset = dataset.batch(num_rows, drop_remainder=True).prefetch(config.prefetch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers  # the trainer's own threads are not TensorFlow's to take
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options).as_numpy_iterator()
