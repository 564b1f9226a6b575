import numpy as np
import pytest

from beit_jax.data.sampler import Sampler


def examples(sampler, step, rows=None):
    rows = np.arange(sampler.batch_size) if rows is None else rows
    return sampler.examples(sampler.positions(step, rows))


def test_golden():
    """Resuming an old run on a new machine depends on these numbers: never change them."""
    sampler = Sampler(1_281_167, 7, seed=3)
    assert examples(sampler, 0).tolist() == [846848, 580624, 1187235, 1276481, 543664, 288910, 673967]
    assert examples(sampler, 183_023 + 5).tolist() == [553247, 652632, 685571, 1017046, 1205199, 1255729, 19729]


def test_hosts_make_slices_of_the_global_batch():
    sampler = Sampler(103, 24, seed=1)
    for step in range(11):
        whole = examples(sampler, step)
        parts = [examples(Sampler(103, 24, seed=1), step, rows) for rows in np.split(np.arange(24), 3)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize('num_examples, batch_size', [(103, 8), (103, 1), (7, 31), (1, 5)])
def test_each_epoch_is_a_permutation(num_examples, batch_size):
    sampler = Sampler(num_examples, batch_size, seed=5)
    stream = np.concatenate([examples(sampler, step) for step in range(5 * num_examples // batch_size + 1)])
    epochs = [stream[i * num_examples:(i + 1) * num_examples] for i in range(5)]
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
    """Three times in an epoch's share, with three different views, and never beside itself: mixup mixes neighbours."""
    sampler, window = Sampler(1009, batch_size, seed=2, repetitions=3), 3 * spacing
    positions = np.arange(3 * 1009 // window * window)
    stream = sampler.examples(positions)
    assert np.all(np.unique(stream, return_counts=True)[1] == 3) and len(np.unique(sampler.views(positions))) == len(positions)
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
    assert sorted(views[:3 * 37]) == list(range(3 * 37)) and set(views[3 * 37:4 * 37]) == set(range(37))
