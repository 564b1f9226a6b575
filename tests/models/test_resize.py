"""Bilinear resizing and adaptive pooling against torch's, float32: 1e-5."""

import numpy as np
import pytest
from torch.nn import functional

from beit_jax.models.resize import adaptive_pool, resize
from tests.models.layouts import our_order, torch_order


@pytest.mark.parametrize('old', [(5, 7), (1, 3), (2, 11)])
@pytest.mark.parametrize('new', [(10, 14), (5, 2), (1, 1), (13, 6)])
def test_resize(old, new):
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    expected = functional.interpolate(
        torch_order(x), size=new, mode='bilinear', align_corners=False
    )
    np.testing.assert_allclose(resize(x, new), our_order(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 3, 6])
@pytest.mark.parametrize('shape', [(5, 7), (6, 13), (2, 1)])
def test_adaptive_pool(shape, size):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    expected = functional.adaptive_avg_pool2d(torch_order(x), size)
    np.testing.assert_allclose(adaptive_pool(x, size), our_order(expected), rtol=0, atol=1e-5)
