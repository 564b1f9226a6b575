"""Batches that tests ask the pipeline for, and what is true of two lists of them."""

import itertools

import numpy as np

from beit_jax.data.config import DataConfig, View
from beit_jax.data.pipeline import train_batches
from beit_jax.data.sampler import Sampler

VIEWS = (View('image', 67, 'bicubic'), View('tokens', 31, 'lanczos3'))
CONFIG = DataConfig(workers=3)
ROWS = np.arange(7)


def train(
    source,
    count,
    start_step=0,
    rows=ROWS,
    batch_size=7,
    seed=5,
    config=CONFIG,
    views=VIEWS,
    repeat_views=0,
):
    """The first `count` batches from `start_step` on."""
    sampler = Sampler(len(source), batch_size, seed, repeat_views=repeat_views)
    batches = train_batches(source, sampler, views, config, rows, start_step)
    return list(itertools.islice(batches, count))


def joined(hosts):
    """The global batches, of which each host has made its rows."""
    whole = []
    for parts in zip(*hosts):
        column = lambda key: np.concatenate([part[key] for part in parts])
        whole.append({key: column(key) for key in parts[0]})
    return whole


def assert_equal(one, two):
    """Two lists of batches hold the same, bit for bit."""
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
