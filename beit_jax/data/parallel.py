"""How batches are made at the same time and in order: tf.data asks for the next ones while threads
fill the rows of each. What reads, decodes and resizes releases the interpreter's lock."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import itertools
import math

import numpy as np
import tensorflow as tf

from beit_jax.data.config import DataConfig, View

Batch = dict[str, np.ndarray]
_BEGUN = 2  # batches that are made at a time, so that no thread waits for the last row of one
_PARTS = 4  # of a batch, for each thread


def batches(
    steps: range,
    examples: Callable[[int], tuple[np.ndarray, np.ndarray]],
    load: Callable[[int, int], list],
    views: Sequence[View],
    num_rows: int,
    config: DataConfig,
) -> Iterator[Batch]:
    """The batches of `steps`, in order; what a thread raises comes out here, as itself.

    Args:
      examples: step -> the number of each row's view and the index of its example, int64 [R] each.
      load: (number, index) -> what the row shows in each view, its mean grey, its label, the
        example used.

    Yields:
      each view's name: [R, ...] of its shape and dtype; `grey` float32 [R]; `label` int32 [R];
        `used` int64 [R]; `index` int64 [R] and `view` uint32 [R] as `examples` gave them.
    """
    workers, failures = config.num_workers, []
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    parts = np.array_split(np.arange(num_rows), min(num_rows, _PARTS * workers))

    def make(step):
        numbers, indices = examples(step)
        arrays = [_aligned([num_rows, *view.shape], view.dtype) for view in views]
        arrays += [np.empty(num_rows, dtype) for dtype in (np.float32, np.int32, np.int64)]

        def fill(rows):
            for row in rows.tolist():
                for array, value in zip(arrays, load(int(numbers[row]), int(indices[row]))):
                    array[row] = value

        try:
            list(pool.map(fill, parts))
        except Exception as error:
            failures.append(error)
            raise
        return [*arrays, indices, numbers.astype(np.uint32)]

    names = [*(view.name for view in views), 'grey', 'label', 'used', 'index', 'view']
    types = [tf.as_dtype(view.dtype) for view in views] + [
        tf.float32,
        tf.int32,
        tf.int64,
        tf.int64,
        tf.uint32,
    ]
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
            yield dict(zip(names, arrays, strict=True))
    except tf.errors.OpError as error:
        raise (failures or [error])[0] from None  # as itself, not as TensorFlow wraps it
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _aligned(shape, dtype):
    """np.empty at an address that TensorFlow can use as it is."""
    size, alignment = math.prod(shape) * dtype.itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def ahead(function: Callable, items: Iterable, config: DataConfig) -> Iterator:
    """`function(item)` of each item, in order, made in threads: two a thread ahead of time."""
    workers, pending, items = config.num_workers, collections.deque(), iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        while True:
            for item in itertools.islice(items, 2 * workers - len(pending)):
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
