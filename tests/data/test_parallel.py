"""Batches asked for ahead, by tf.data and, as where TensorFlow is not installed, by threads: the
same ones, and the same errors; what is not taken any more is not made."""

import dataclasses
import importlib.util
import itertools
import sys
import threading
import time

import numpy as np
import pytest

from beit_jax.data import parallel
from tests.data.batches import CONFIG, VIEWS, assert_equal, train

each_way = pytest.mark.parametrize(
    'tensorflow',
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                importlib.util.find_spec('tensorflow') is None, reason='not installed'
            ),
        ),
    ],
    ids=['threads', 'tf.data'],
)


@pytest.fixture
def without(monkeypatch):
    """Takes TensorFlow away, as if it were not installed."""
    return lambda: monkeypatch.setitem(sys.modules, 'tensorflow', None)


def counted(steps, examples=None, **settings):
    """Batches of 5 rows, whose pixels are the numbers of their views."""
    config = dataclasses.replace(CONFIG, **settings)

    def numbers(step):
        return 5 * step + np.arange(5), np.arange(5)

    def load(number, index):
        return [*(number % 251 for _ in VIEWS), 0.5, 3, index]

    return parallel.batches(steps, examples or numbers, load, VIEWS, 5, config)


def test_threads_make_the_batches_of_tf_data(spoiled, without):
    pytest.importorskip('tensorflow')
    expected = train(spoiled, 7, start_step=2)
    without()
    for config in (CONFIG, dataclasses.replace(CONFIG, workers=1, prefetch=0)):
        assert_equal(train(spoiled, 7, start_step=2, config=config), expected)


@each_way
def test_order_and_end(tensorflow, without):
    tensorflow or without()
    for prefetch in (0, 1, 3):
        batches = list(counted(range(3, 14), prefetch=prefetch))
        for step, batch in zip(range(3, 14), batches, strict=True):
            expected = 5 * step + np.arange(5)
            np.testing.assert_array_equal(batch['view'], expected)
            for view in VIEWS:
                assert (batch[view.name] == expected[:, None, None, None] % 251).all()


@each_way
def test_errors_come_out_as_themselves(tensorflow, without):
    """Those of the first step that fails, after the batches before it, though a later one fails
    sooner."""
    tensorflow or without()
    errors = {4: LookupError('fourth'), 5: ArithmeticError('fifth')}

    def examples(step):
        if int(step) in errors:
            time.sleep(0.3 * (step == 4))
            raise errors[int(step)]
        return np.arange(5), np.arange(5)

    batches = counted(range(99), examples)
    assert len(list(itertools.islice(batches, 4))) == 4
    with pytest.raises(LookupError) as raised:
        next(batches)
    assert raised.value is errors[4]


@each_way
def test_closing_ends_its_threads(tensorflow, without):
    """After no more batches than are kept ready."""
    tensorflow or without()
    before, begun = set(threading.enumerate()), []

    def left():
        """Python's own threads: it never learns that one of TensorFlow's has ended."""
        now = set(threading.enumerate()) - before
        return {thread for thread in now if not isinstance(thread, threading._DummyThread)}

    def examples(step):
        begun.append(step)
        return np.arange(5), np.arange(5)

    batches = counted(range(2**62), examples, prefetch=3)
    next(batches), next(batches)
    assert left()
    batches.close()
    deadline = time.monotonic() + 20
    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.01)
    assert 2 <= len(begun) <= 2 + 3 + 2 * parallel._BEGUN
