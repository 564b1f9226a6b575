"""How batches are made at the same time and in order: threads fill the rows of each, and the next
ones are asked for ahead, by tf.data or, where TensorFlow is not installed, by threads too. What
reads, decodes and resizes releases the interpreter's lock."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import importlib.util
import itertools
import math

import numpy as np

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
    label_shape: tuple[int, ...] = (),
) -> Iterator[Batch]:
    """The batches of `steps`, in order; what a thread raises comes out here, as itself.

    Args:
      examples: step -> the number of each row's view and the index of its example, int64 [R] each.
      load: (number, index) -> what the row shows in each view, its mean grey, its label, the
        example used.

    Yields:
      each view's name: [R, ...] of its shape and dtype; `grey` float32 [R]; `label` int32 [R], of
        another `label_shape` float32 [R, C]; `used` int64 [R]; `index` int64 [R] and `view` uint32
        [R] as `examples` gave them.
    """
    workers, label = config.num_workers, np.float32 if label_shape else np.int32
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    parts = np.array_split(np.arange(num_rows), min(num_rows, _PARTS * workers))

    def make(step):
        numbers, indices = examples(step)
        arrays = [_aligned([num_rows, *view.shape], view.dtype) for view in views]
        arrays += [
            np.empty(num_rows, np.float32),
            np.empty((num_rows, *label_shape), label),
            np.empty(num_rows, np.int64),
        ]

        def fill(rows):
            for row in rows.tolist():
                for array, value in zip(arrays, load(int(numbers[row]), int(indices[row]))):
                    array[row] = value

        list(pool.map(fill, parts))
        return [*arrays, indices, numbers.astype(np.uint32)]

    names = [*(view.name for view in views), 'grey', 'label', 'used', 'index', 'view']
    dtypes = [view.dtype for view in views]
    dtypes += [np.float32, label, np.int64, np.int64, np.uint32]
    try:
        with contextlib.closing(_in_order(make, dtypes, steps, config.prefetch)) as made:
            for arrays in made:
                yield dict(zip(names, arrays, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(make, dtypes, steps, prefetch):
    """`make(step)` of each step, in order: `_BEGUN` at a time, and `prefetch` are kept ready."""
    if importlib.util.find_spec('tensorflow') is None:
        return _ahead(make, steps, _BEGUN, _BEGUN + prefetch)
    from beit_jax.data import tf_data

    return tf_data.in_order(make, dtypes, steps, _BEGUN, prefetch)


def _aligned(shape, dtype):
    """np.empty at an address that TensorFlow can use as it is."""
    size, alignment = math.prod(shape) * dtype.itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def ahead(function: Callable, items: Iterable, config: DataConfig) -> Iterator:
    """`function(item)` of each item, in order, made in threads: two a thread ahead of time."""
    return _ahead(function, items, config.num_workers, 2 * config.num_workers)


def _ahead(function, items, threads, count):
    """`function(item)` of each item, in order, made in threads: `count` ahead of time."""
    pending, items = collections.deque(), iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        while True:
            for item in itertools.islice(items, count - len(pending)):
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
