"""Batches for the trainer: read, crop, flip and resize in parallel, each picture a pure function of
(seed, example, number of the view).

A bad record (not an image, truncated, too small, unreadable) never shifts the others: another
example takes its place, the same one on every run.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import functools
import itertools
import math
import os
from types import ModuleType

import numpy as np
import tensorflow as tf

from beit_jax.data.config import IGNORED, DataConfig, SegmentDataConfig, View
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import DRAWS, Box, center_box, flipped, random_box, whole_box
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.pictures.rand_augment import fill_color, parse_policy, rand_augment
from beit_jax.data.sampler import Sampler, random_bits
from beit_jax.data.sources.source import Example, Source, check_label
from beit_jax.errors import RequestError, check

Batch = dict[str, np.ndarray]
SUBSTITUTES = 8  # examples that may take the place of a bad one; they are read only when it is bad
CHECKED = 32  # examples that check_source reads
_ENDLESS = 2**62  # steps
_BEGUN = 2  # batches that are made at a time, so that no thread waits for the last row of one
_PARTS = 4  # of a batch, for each thread


def train_batches(
    source: Source,
    sampler: Sampler,
    views: Sequence[View],
    config: DataConfig,
    rows: np.ndarray,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on: the `rows` (int [R]) of each global batch, randomly
    cropped and flipped.

    Yields:
      each view's name: uint8 [R, size, size, 3], one and the same crop; `label` int32 [R], 0 where
        labels are maps; `index` int64 [R], the example that the sampler asked for; `view` uint32
        [R], the number that seeds what is drawn for the picture (modulo 2 ** 32); `substituted`
        bool [R], true where that example was bad; `used` int64 [R], the one that is there instead;
        `valid` float32 [R], ones.

    With label maps (`SegmentDataConfig`) the crop is `label_maps.random_window`, flipped before it
    is padded: with the mean of the pixels, which is 0 once they are normalised, and with 255 in the
    view by `nearest`, uint8 [R, size, size], which shows the classes of that very crop.

    Raises:
      RequestError: an example and all that could take its place are bad; a label or a pixel of one
        has a class that there is not; an annotation has another size than its image.
    """
    images = image_ops(config)

    def examples(step):
        positions = sampler.positions(step, rows)
        return sampler.views(positions), sampler.examples(positions)

    def candidates(view, index):
        """`index`, then others drawn from (seed, view)."""
        yield index
        yield from (
            int(number % len(source)) for number in random_bits(SUBSTITUTES, sampler.seed, view)
        )

    def make(view, used, example):
        flip, *draws = (
            (random_bits(1 + DRAWS, sampler.seed, view, (0, 0, 0, 2)) >> np.uint64(11)) * 2.0**-53
        ).tolist()
        # after resizing: there is less to turn
        turn = flipped if config.flip and flip < 0.5 else lambda picture: picture
        if config.label_maps:
            window_of = lambda label_map: label_maps.random_window(
                draws, label_map, views[0].size, config.segment_scale
            )
            return _segment(source, used, example, images, views, config, window_of, turn)
        crop = images.decode_crop(
            example.image,
            lambda height, width: random_box(
                draws, height, width, config.crop_scale, config.crop_ratio
            ),
        )
        return [
            *(
                augment(turn(picture), each, view)
                for picture, each in zip(images.resize(crop, views), views)
            ),
            example.label,
        ]

    def augment(picture, view, number):
        if not view.rand_augment:
            return picture
        return rand_augment(
            picture, parse_policy(view.rand_augment), sampler.seed, number, fill_color(config.mean)
        )

    load = functools.partial(_load, source, candidates, make, views)
    for batch in _batches(range(start_step, _ENDLESS), examples, load, views, len(rows), config):
        used = _checked_used(batch, source)
        for index in batch['index'][used < 0]:
            raise RequestError(
                f'{source.name(index)}: {_flaw(source, index, config) or "unreadable"}. '
                f'{SUBSTITUTES} others, drawn to take its place, are bad too. Remove or repair the '
                'bad files in config.data.path.'
            )
        yield batch | {
            'substituted': used != batch['index'],
            'valid': np.ones(len(rows), np.float32),
        }


def evaluate_batches(
    source: Source,
    batch_size: int,
    views: Sequence[View],
    config: DataConfig,
    rows: np.ndarray,
    share: float = 224 / 256,
) -> Iterator[Batch]:
    """One pass over `source` in order, in batches as `train_batches` makes them, of the central
    square of `share` of the shorter side.

    The last batch is filled up with example 0. `valid` is 0 there, and for a bad example, whose
    pixels and label are 0 (label map: 255) and `substituted` true, `used` -1. Every host yields
    ceil(N / batch_size) batches. For the whole of each picture: `segmentation_examples`.
    """
    images = image_ops(config)

    def examples(step):
        positions = step * batch_size + np.asarray(rows, np.int64)
        return positions, np.where(positions < len(source), positions, 0)

    def make(_, used, example):
        if config.label_maps:
            return _segment(
                source, used, example, images, views, config, window_of, lambda picture: picture
            )
        return [
            *images.resize(
                images.decode_crop(
                    example.image, lambda height, width: center_box(height, width, share)
                ),
                views,
            ),
            example.label,
        ]

    def window_of(label_map):
        box = center_box(*label_map.shape, share)
        return box, label_maps.resize(label_map, box, views[0].shape[:2])

    load = functools.partial(_load, source, lambda _, index: [index], make, views)
    steps = range(math.ceil(len(source) / batch_size))
    for step, batch in zip(
        steps, _batches(steps, examples, load, views, len(rows), config), strict=True
    ):
        used, positions = _checked_used(batch, source), examples(step)[0]
        good = used >= 0
        yield batch | {
            'substituted': ~good,
            'valid': (good & (positions < len(source))).astype(np.float32),
        }


def whole_example(
    source: Source, index: int, config: SegmentDataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [H, W, 3], label map uint8 [H, W]) of an example, as it is.

    Raises:
      OSError: it cannot be read, or is damaged.
      RequestError: what `label_maps.decode` and `check_size` refuse.
    """
    image, label = source.read(index)
    label_map = label_maps.decode(
        label, source.name(index), len(source.class_names), config.reduce_zero_label
    )
    pixels = image_ops(config).decode_crop(image, whole_box)
    label_maps.check_size(label_map, source.name(index), *pixels.shape[:2])
    return pixels, label_map


def segmentation_examples(
    source: Source,
    config: SegmentDataConfig,
    indices: Iterable[int],
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray | None]]:
    """(index, image uint8 [H, W, 3], label map uint8 [H, W]) of `indices`, in order, each of its
    own size; None and None where it is bad.

    Decoded ahead in threads. Of P hosts, the p-th takes `range(p, len(source), P)`.

    Raises:
      RequestError: see `whole_example`.
    """
    workers, pending, indices = (
        config.workers or len(os.sched_getaffinity(0)),
        collections.deque(),
        iter(indices),
    )
    pool = concurrent.futures.ThreadPoolExecutor(workers)

    def load(index):
        try:
            return index, *whole_example(source, index, config)
        except OSError:
            return index, None, None

    try:
        while True:
            for index in itertools.islice(indices, 2 * workers - len(pending)):
                pending.append(pool.submit(load, int(index)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def check_source(source: Source, config: DataConfig) -> None:
    """Decodes up to 32 evenly spread examples in full.

    Raises:
      RequestError: the share of bad ones is above `config.max_bad_share`. One alone does not count,
        unless it is all there is.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, CHECKED).round().astype(int))
    bad = [
        f'{source.name(index)} ({flaw})'
        for index in indices
        if (flaw := _flaw(source, index, config))
    ]
    share = 0.0 if len(bad) == 1 < len(indices) else len(bad) / len(indices)
    check(
        share <= config.max_bad_share,
        f'{len(bad)} of {len(indices)} examples looked at cannot be used: '
        f'{", ".join(bad[:3])}{", ..." * (len(bad) > 3)}.\nRemove or repair them, or raise '
        f'config.data.max_bad_share ({config.max_bad_share:g}).',
    )


def _checked_used(batch, source):
    """Which examples a batch uses, int64 [R], -1 for none; raises RequestError where one has a
    label that no class has."""
    used, labels = batch['used'], batch['label']
    for row in np.flatnonzero(
        (used >= 0) & ((labels < 0) | (labels >= max(1, len(source.class_names))))
    ):
        check_label(source, used[row], labels[row])
    return used


def _flaw(source, index, config):
    try:
        if config.label_maps:
            whole_example(source, int(index), config)
        else:
            # any other error of `read` is a bug and shows as itself
            image_ops(config).decode_crop(source.read(int(index)).image, whole_box)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _load(
    source: Source,
    candidates: Callable[..., Iterable[int]],
    make: Callable[..., list],
    views: Sequence[View],
    number: int,
    index: int,
) -> list:
    """The views and the label that `make(number, used, example)` makes of the first readable of
    `candidates(number, index)`, and its index `used`; or, where none is, black pictures, 0 and
    -1."""
    for used in candidates(number, index):
        try:
            return [*make(number, used, source.read(used)), used]
        except OSError:
            continue
    return [*(IGNORED if view.method == 'nearest' else 0 for view in views), 0, -1]


def _segment(
    source: Source,
    used: int,
    example: Example,
    images: ModuleType,
    views: Sequence[View],
    config: SegmentDataConfig,
    window_of: Callable[[np.ndarray], tuple[Box, np.ndarray]],
    turn: Callable,
) -> list:
    """The views of an example with a label map, and 0: what `window_of(label map)`, (box, its
    classes as the views show them), says."""
    label_map = label_maps.decode(
        example.label, source.name(used), len(source.class_names), config.reduce_zero_label
    )
    box, classes = window_of(label_map)

    def box_of(height, width):
        label_maps.check_size(label_map, source.name(used), height, width)
        return box

    crop, mean = images.decode_crop(example.image, box_of), fill_color(config.mean)
    return [
        *(
            label_maps.pad(turn(classes), view.size, IGNORED)
            if view.method == 'nearest'
            else label_maps.pad(turn(*images.resize(crop, [view], classes.shape)), view.size, mean)
            for view in views
        ),
        0,
    ]


def _aligned(shape):
    """np.empty, uint8, at an address that TensorFlow can use as it is."""
    size, alignment = math.prod(shape), 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].reshape(shape)


def _batches(
    steps: range,
    examples: Callable,
    load: Callable,
    views: Sequence[View],
    num_rows: int,
    config: DataConfig,
) -> Iterator[Batch]:
    """Batches of `num_rows` of what `load(view number, index)` makes, in order, for the (view
    numbers, indices) of `examples(step)`."""
    workers, failures = config.workers or len(os.sched_getaffinity(0)), []
    # what reads, decodes and resizes releases the interpreter's lock
    pool = concurrent.futures.ThreadPoolExecutor(workers)

    def make(step):
        numbers, indices = examples(step)
        batch = [
            *(_aligned([num_rows, *view.shape]) for view in views),
            np.empty(num_rows, np.int32),
            np.empty(num_rows, np.int64),
        ]

        def fill(rows):
            for row in rows.tolist():
                for array, value in zip(batch, load(int(numbers[row]), int(indices[row]))):
                    array[row] = value

        try:
            for _ in pool.map(
                fill, np.array_split(np.arange(num_rows), min(num_rows, _PARTS * workers))
            ):
                pass
        except Exception as error:
            failures.append(error)
            raise
        return [*batch, indices, numbers.astype(np.uint32)]

    types = [tf.uint8] * len(views) + [tf.int32, tf.int64, tf.int64, tf.uint32]
    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(
        lambda step: tf.numpy_function(make, [step], types),
        num_parallel_calls=_BEGUN,
        deterministic=True,
    )
    options = tf.data.Options()
    # the trainer's own threads are not TensorFlow's to take
    options.threading.private_threadpool_size = _BEGUN
    # there is nothing to tune, and closing the iterator would wait for the tuner, who sleeps up to
    # a minute
    options.autotune.enabled = False
    try:
        for arrays in dataset.prefetch(config.prefetch).with_options(options).as_numpy_iterator():
            yield dict(
                zip(
                    [*(view.name for view in views), 'label', 'used', 'index', 'view'],
                    arrays,
                    strict=True,
                )
            )
    except tf.errors.OpError as error:
        raise (failures or [error])[0] from None  # as itself, not as TensorFlow wraps it
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
