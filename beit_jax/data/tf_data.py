"""Batches asked for ahead by tf.data, where TensorFlow is installed."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

tf.config.set_visible_devices([], 'GPU')  # the accelerator belongs to JAX


def in_order(
    make: Callable[[int], list[np.ndarray]],
    dtypes: Sequence[type],
    steps: range,
    at_a_time: int,
    prefetch: int,
) -> Iterator[list[np.ndarray]]:
    """`make(step)`, arrays of `dtypes`, of each step, in order: `at_a_time` are made at once and
    `prefetch` kept ready. What `make` raises comes out as itself."""
    failures = {}

    def noted(step):
        try:
            return make(int(step))
        except Exception as error:
            failures[int(step)] = error
            raise

    types = [tf.as_dtype(dtype) for dtype in dtypes]
    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(
        lambda step: tf.numpy_function(noted, [step], types),
        num_parallel_calls=at_a_time,
        deterministic=True,
    )
    options = tf.data.Options()
    # the trainer's own threads are not TensorFlow's to take
    options.threading.private_threadpool_size = at_a_time
    # there is nothing to tune, and closing the iterator would wait for the tuner, who sleeps up to
    # a minute
    options.autotune.enabled = False
    try:
        yield from dataset.prefetch(prefetch).with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        # as itself, not as TensorFlow wraps it; that of the step whose turn it is
        raise (failures[min(failures)] if failures else error) from None
