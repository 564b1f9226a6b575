"""Positions for another grid against torch and the published algorithm.

The latter is written with SciPy's two-dimensional spline.
"""

import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline
import torch
from torch.nn import functional

from beit_jax.weights.positions import fit_positions, resize_bias_table, resize_position_embedding


def official(table, old, new):
    """run_class_finetuning.py:364-411 for a square grid, head by head."""
    source, target = 2 * old - 1, 2 * new - 1

    def progression(ratio):
        return (1.0 - ratio ** (source // 2)) / (1.0 - ratio)

    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2.0
        if progression(q) > target // 2:
            right = q
        else:
            left = q
    distances, current = [], 1
    for i in range(source // 2):
        distances.append(current)
        current += q ** (i + 1)
    places = [-distance for distance in reversed(distances)] + [0] + distances
    wanted, heads = np.arange(-(target // 2.0), target // 2.0 + 0.1, 1.0), []
    for values in table[:-3].T.reshape(-1, source, source):
        spline = RectBivariateSpline(places, places, values, kx=3, ky=3, s=0)
        heads.append(spline(wanted, wanted).ravel())
    return np.concatenate([np.stack(heads, axis=1), table[-3:]])


@pytest.mark.parametrize(('old', 'new'), [(14, 24), (14, 32), (5, 7)])
def test_bias_table(old, new):
    table = np.random.default_rng(0).normal(size=((2 * old - 1) ** 2 + 3, 5)).astype(np.float32)
    resized = resize_bias_table(table, (old, old), (new, new))
    np.testing.assert_allclose(resized, official(table, old, new), rtol=0, atol=1e-5)


def test_bias_table_of_another_aspect():
    """Rows and columns are resized each on its own; what does not change keeps its values."""
    rows = np.random.default_rng(0).normal(size=(13, 1))
    columns = np.random.default_rng(1).normal(size=(1, 9))
    table = np.concatenate([(rows * columns).reshape(-1, 1), np.ones((3, 1))]).astype(np.float32)
    tall = np.asarray(resize_bias_table(table, (7, 5), (11, 5)))[:-3].reshape(21, 9)
    expected = np.repeat(columns / columns[0, 0], 21, axis=0)
    np.testing.assert_allclose(tall / tall[:, :1], expected, rtol=2e-4)
    # offset 0 stays where it is
    np.testing.assert_allclose(tall[10], (rows * columns)[6], atol=1e-6)


@pytest.mark.parametrize('new', [(24, 24), (7, 11), (14, 14)])
def test_position_embedding(new):
    embedding = np.random.default_rng(0).normal(size=(1 + 14 * 14, 5)).astype(np.float32)
    resized = np.asarray(resize_position_embedding(embedding, (14, 14), new))
    grid = torch.from_numpy(embedding[1:]).reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    theirs = functional.interpolate(grid, size=new, mode='bicubic', align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 5)
    np.testing.assert_allclose(resized[1:], theirs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(resized[0], embedding[0])


def test_shared_bias_is_given_to_every_layer():
    table = np.random.default_rng(0).normal(size=(5 * 5 + 3, 2)).astype(np.float32)
    encoder = {
        'position_bias': {'table': table},
        'blocks': {name: {'attention': {'out': name}} for name in ('00', '01')},
    }
    layers, notes = fit_positions(encoder, (3, 3), 'layer_bias', (3, 3))
    assert 'position_bias' not in layers and len(notes) == 1
    for block in layers['blocks'].values():
        np.testing.assert_array_equal(block['attention']['position_bias']['table'], table)
    resized = resize_bias_table(table, (3, 3), (4, 5))
    larger, notes = fit_positions(encoder, (3, 3), 'layer_bias', (4, 5))
    found = larger['blocks']['01']['attention']['position_bias']['table']
    np.testing.assert_array_equal(found, resized)
    assert len(notes) == 2 and encoder['blocks']['00'] == {'attention': {'out': '00'}}
    places = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    both = encoder | {'position_embedding': places}
    found, notes = fit_positions(both, (3, 3), 'absolute+layer_bias', (4, 5))
    assert 'position_bias' not in found and len(notes) == 2
    np.testing.assert_array_equal(
        found['position_embedding'], resize_position_embedding(places, (3, 3), (4, 5))
    )
    kept, notes = fit_positions(encoder, (3, 3), 'shared_bias', (4, 5))
    np.testing.assert_array_equal(kept['position_bias']['table'], resized)
