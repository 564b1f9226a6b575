"""Layers that have no test of a model: positions by hand, GELU against torch."""

import itertools

import jax
import numpy as np
import pytest
import torch

from beit_jax.models.layers import gelu, relative_position_index


@pytest.mark.parametrize('grid', [(3, 5), (5, 2), (1, 7)])
def test_relative_position_index(grid):
    height, width = grid
    index = relative_position_index(grid)
    last = (2 * height - 1) * (2 * width - 1) + 2
    assert index.shape == (1 + height * width,) * 2
    for query, key in itertools.product(range(1 + height * width), repeat=2):
        if query and key:
            (y, x), (v, u) = divmod(query - 1, width), divmod(key - 1, width)
            expected = (y - v + height - 1) * (2 * width - 1) + (x - u + width - 1)
        elif query == key:
            expected = last
        else:
            expected = last - 1 if query else last - 2
        assert index[query, key] == expected, (query, key)


def test_gelu():
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, 1e-4, -1e-4, 40, -40]]).astype(np.float32)
    values, slopes = jax.vmap(jax.value_and_grad(gelu))(x)
    leaf = torch.tensor(x, requires_grad=True)
    wanted = torch.nn.functional.gelu(leaf)
    wanted.sum().backward()
    np.testing.assert_allclose(values, wanted.detach(), atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(slopes, leaf.grad, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(gelu(x), values)
