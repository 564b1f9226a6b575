"""The order of the examples: the same everywhere, each once an epoch, whatever the hosts."""

import numpy as np
import pytest

from beit_jax.data.sampler import Sampler
from beit_jax.errors import RequestError


def examples(sampler, step, rows=None):
    rows = np.arange(sampler.batch_size) if rows is None else rows
    return sampler.examples(sampler.positions(step, rows))


def test_golden():
    """Resuming an old run on a new machine depends on these numbers: never change them."""
    sampler = Sampler(1_281_167, 7, seed=3)
    expected = [846848, 580624, 1187235, 1276481, 543664, 288910, 673967]
    assert examples(sampler, 0).tolist() == expected
    expected = [553247, 652632, 685571, 1017046, 1205199, 1255729, 19729]
    assert examples(sampler, 183_023 + 5).tolist() == expected


def test_hosts_make_slices_of_the_global_batch():
    sampler = Sampler(103, 24, seed=1)
    for step in range(11):
        whole = examples(sampler, step)
        hosts = np.split(np.arange(24), 3)
        parts = [examples(Sampler(103, 24, seed=1), step, rows) for rows in hosts]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize('num_examples, batch_size', [(103, 8), (103, 1), (7, 31), (1, 5)])
def test_each_epoch_is_a_permutation(num_examples, batch_size):
    sampler = Sampler(num_examples, batch_size, seed=5)
    steps = range(5 * num_examples // batch_size + 1)
    stream = np.concatenate([examples(sampler, step) for step in steps])
    epochs = [stream[i * num_examples : (i + 1) * num_examples] for i in range(5)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
    if num_examples > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 5


def test_steps_in_any_order_and_far_away():
    sampler = Sampler(1009, 16, seed=2)
    forward = [examples(sampler, step) for step in range(150)]
    for step in (149, 3, 77, 0):
        np.testing.assert_array_equal(examples(Sampler(1009, 16, seed=2), step), forward[step])
    far = sampler.positions(2**40, np.arange(3))
    assert far.dtype == np.int64 and far.tolist() == [2**44, 2**44 + 1, 2**44 + 2]
    assert set(sampler.examples(far)) <= set(range(1009))


def test_seed_and_shuffle():
    assert examples(Sampler(1009, 64, 0), 0).tolist() != examples(Sampler(1009, 64, 1), 0).tolist()
    assert examples(Sampler(1009, 64, -1), 0).tolist() != examples(Sampler(1009, 64, 1), 0).tolist()
    assert examples(Sampler(5, 7, 0, shuffle=False), 1).tolist() == [2, 3, 4, 0, 1, 2, 3]


@pytest.mark.parametrize(('batch_size', 'spacing'), [(1024, 256), (32, 10)])
def test_repeated_augmentation(batch_size, spacing):
    """Three times in an epoch's share, with three different views, and never beside itself: mixup
    mixes neighbours."""
    sampler, window = Sampler(1009, batch_size, seed=2, repetitions=3), 3 * spacing
    positions = np.arange(3 * 1009 // window * window)
    stream = sampler.examples(positions)
    assert np.all(np.unique(stream, return_counts=True)[1] == 3)
    assert len(np.unique(sampler.views(positions))) == len(positions)
    plain = Sampler(1009, batch_size, seed=2).examples(np.arange(len(positions) // 3))
    np.testing.assert_array_equal(stream.reshape(-1, 3, spacing)[:, 0].ravel(), plain)
    assert np.all(stream[::2] != stream[1::2])
    first = [np.flatnonzero(stream == example) for example in stream[:50]]
    assert all(np.all(np.diff(places) == spacing) for places in first)


def test_views_are_counted_or_repeat():
    positions = np.arange(5 * 37)
    np.testing.assert_array_equal(Sampler(37, 8, seed=2).views(positions), positions)
    sampler = Sampler(37, 8, seed=2, repeat_views=3)
    views = sampler.views(positions)
    np.testing.assert_array_equal(views % 37, sampler.examples(positions))
    np.testing.assert_array_equal(views // 37, positions // 37 % 3)
    assert sorted(views[: 3 * 37]) == list(range(3 * 37))
    assert set(views[3 * 37 : 4 * 37]) == set(range(37))


def two_levels(num_examples, seed, epoch, chunk, window, lanes):
    """What the lanes are fed in an epoch, int64 [lanes, N // lanes]: the definition, without
    arithmetic on places."""

    def order(number, counter):
        key, counter = np.array([seed, epoch], np.uint64), np.array(counter, np.uint64)
        bits = np.random.Philox(key=key, counter=counter).random_raw(number)
        return sorted(range(number), key=lambda i: bits[i])

    chunks = [list(range(i, min(i + chunk, num_examples))) for i in range(0, num_examples, chunk)]
    sequence = [example for i in order(len(chunks), [0, 0, 0, 0]) for example in chunks[i]]
    length, made = num_examples // lanes, []
    for lane in range(lanes):
        interval, fed = sequence[lane * length : (lane + 1) * length], []
        for number, begin in enumerate(range(0, length, window * chunk)):
            shown = interval[begin : begin + window * chunk]
            fed += [shown[i] for i in order(len(shown), [0, lane, number, 1])]
        made.append(fed)
    return np.array(made)


CHUNKED = [
    (103, 12, 5, 3, 1),
    (1009, 21, 13, 2, 3),
    (1009, 16, 7, 5, 2),
    (53, 31, 7, 100, 1),
    (47, 10, 50, 1, 5),
    (7, 14, 3, 2, 7),
    (101, 7, 1, 11, 1),
]


@pytest.mark.parametrize(('num_examples', 'batch_size', 'chunk', 'window', 'lanes'), CHUNKED)
def test_chunks_within_windows_within_lanes(num_examples, batch_size, chunk, window, lanes):
    sampler = Sampler(num_examples, batch_size, seed=5, chunk=chunk, window=window, lanes=lanes)
    # [steps, batch_size]
    stream = np.stack([examples(sampler, step) for step in range(4 * num_examples // batch_size)])
    fed = stream.reshape(len(stream), lanes, -1).swapaxes(0, 1).reshape(lanes, -1)
    epochs = [two_levels(num_examples, 5, epoch, chunk, window, lanes) for epoch in range(5)]
    expected = np.concatenate(epochs, axis=1)
    np.testing.assert_array_equal(fed, expected[:, : fed.shape[1]])
    left_out = [frozenset(range(num_examples)) - set(epoch.ravel()) for epoch in epochs]
    # every other example comes once, as lanes are equally long
    assert all(len(left) == num_examples % lanes for left in left_out)
    assert expected.size == 5 * (num_examples - num_examples % lanes)
    if num_examples == 1009:
        assert len(set(left_out)) > 1
    rows = np.array([batch_size - 1, 0, batch_size // 2])
    for step in (len(stream) - 1, 0, 1):  # any rows, any step, another process
        other = Sampler(num_examples, batch_size, seed=5, chunk=chunk, window=window, lanes=lanes)
        np.testing.assert_array_equal(examples(other, step, rows), stream[step, rows])
        hosts = [examples(other, step, part) for part in np.array_split(np.arange(batch_size), 3)]
        np.testing.assert_array_equal(np.concatenate(hosts), stream[step])


def test_golden_of_chunks():
    """As `test_golden`: never change them."""
    sampler = Sampler(1_281_167, 8, seed=3, chunk=64, window=16, lanes=2)
    expected = [740728, 456908, 316967, 1001309, 488242, 1094859, 992471, 750741]
    assert examples(sampler, 0).tolist() == expected
    expected = [1203921, 373759, 799127, 858814, 251877, 251844, 386732, 251900]
    assert examples(sampler, 160_145 + 5).tolist() == expected


def test_a_window_is_few_long_runs():
    """What a window reads is `window` runs of `chunk` examples, or one more where it cuts chunks in
    two; a plain order reads single ones."""
    chunk, window = 32, 8
    sampler = Sampler(100_003, 256, seed=1, chunk=chunk, window=window)
    for step in range(100):
        read = np.sort(examples(sampler, step))
        runs = np.split(read, np.flatnonzero(np.diff(read) > 1) + 1)
        assert len(runs) <= window + 1 and np.mean([len(run) for run in runs]) > 0.85 * chunk
    plain = np.sort(examples(Sampler(100_003, 256, seed=1), 0))
    assert np.count_nonzero(np.diff(plain) == 1) < 5


def test_lanes_that_do_not_fit():
    words = r'batch_size 16 is not a multiple of config.data.lanes=3'
    with pytest.raises(RequestError, match=words):
        Sampler(103, 16, 0, chunk=4, lanes=3)
    with pytest.raises(RequestError, match=r'config.data.lanes=16, but there are 7 examples'):
        Sampler(7, 16, 0, chunk=4, lanes=16)
