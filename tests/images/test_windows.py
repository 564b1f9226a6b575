"""Where windows lie, and the matrices of an axis, against torch and a plain average."""

import numpy as np
import pytest
import torch

from beit_jax.images.windows import axis_maps, fitted_size, window_starts


@pytest.mark.parametrize(
    ('length', 'starts'),
    [(3, [0]), (13, [0]), (14, [0, 1]), (22, [0, 8, 9]), (29, [0, 8, 16]), (30, [0, 8, 16, 17])],
)
def test_window_starts(length, starts):
    assert window_starts(length, 13, 8) == starts
    assert all(max(start + 13 for start in starts) >= length for _ in starts)


def test_windows_as_mmsegmentation_of_the_recipe():
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]


def by_torch(values, size):
    """Resized along the only axis."""
    x = torch.tensor(values)[None, None]
    return torch.nn.functional.interpolate(x, size=size, mode='linear')[0, 0].numpy()


@pytest.mark.parametrize(('length', 'result'), [(37, 37), (37, 101), (37, 11), (13, 13), (7, 19)])
def test_axis_maps(length, result):
    """Windows of 13 with 3 logits each, every 8 pixels; also an axis shorter than a window."""
    maps, random = axis_maps(length, result, 13, 8, 3), np.random.default_rng(0)
    assert [start for start, _ in maps] == window_starts(length, 13, 8)
    logits = [random.normal(size=3) for _ in maps]
    total, count = np.zeros(length), np.zeros(length)
    for (start, _), values in zip(maps, logits):
        large = by_torch(values, 13)
        for place in range(start, min(start + 13, length)):
            total[place] += large[place - start]
            count[place] += 1
    found = sum(map_ @ values for (_, map_), values in zip(maps, logits))
    np.testing.assert_allclose(found, by_torch(total / count, result), atol=1e-6)


@pytest.mark.parametrize(
    ('size', 'fitted'),
    [
        ((512, 683), (512, 683)),
        ((3000, 200), (2048, 137)),
        ((100, 300), (512, 1536)),
        ((1024, 768), (683, 512)),
    ],
)
def test_fitted_size(size, fitted):
    assert fitted_size(*size, (512, 512), 2048) == fitted


def test_fitted_size_of_a_rectangle():
    assert fitted_size(300, 300, (64, 96), 400) == (96, 96)
    assert fitted_size(100, 300, (64, 96), 400) == (64, 192)
    assert fitted_size(100, 900, (64, 96), 400) == (44, 400)
