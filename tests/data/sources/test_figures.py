"""The figures of `shapes`: distances by scikit-image, coverage by distances."""

import math

import numpy as np
import pytest
from skimage.draw import polygon2mask

from beit_jax.data.sources.figures import POLYGONS, SHAPES, coverage, signed_distance


@pytest.mark.parametrize('shape', sorted(POLYGONS))
def test_distance_to_a_polygon(shape):
    """Inside is negative; the distance changes by at most the step."""
    size = 101
    centres = (np.arange(size) + 0.5) * (2.4 / size) - 1.2
    x, y = np.meshgrid(centres, centres, indexing='xy')
    distance = signed_distance(shape, x.astype(np.float32), y.astype(np.float32))
    corners = (np.asarray(POLYGONS[shape]) + 1.2) * size / 2.4 - 0.5
    filled = polygon2mask((size, size), corners[:, ::-1])
    disagree = (distance < 0) != filled
    assert disagree.mean() < 0.01 and np.abs(distance[disagree]).max(initial=0) < 2.4 / size
    assert np.abs(np.diff(distance, axis=0)).max() <= 2.4 / size * 1.01


def exact_coverage(shape, size, half_size, centre, angle):
    """What `coverage` says, from `signed_distance` itself: float64 [size, size]."""
    centres = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid((centres - centre[0]) / half_size, (centres - centre[1]) / half_size)
    cos, sin = math.cos(angle), math.sin(angle)
    distance = signed_distance(shape, cos * x + sin * y, cos * y - sin * x)
    return np.clip(0.5 - distance * half_size * size / 2, 0, 1)


FIGURES = [(shape, size) for shape in (*SHAPES, 'bar') for size in (32, 61)]


@pytest.mark.parametrize(('shape', 'size'), [*FIGURES, ('corner', 256)])
def test_coverage_is_exact(shape, size):
    rng = np.random.default_rng(size)
    for half_size in (0.1, 0.17, 0.43, 0.8) * 5:
        pose = half_size, rng.uniform(-1, 1, 2).tolist(), rng.uniform(0, 2 * math.pi)
        box, share = coverage(shape, size, *pose)
        whole = np.zeros((size, size), np.float32)
        whole[box] = share
        np.testing.assert_allclose(whole, exact_coverage(shape, size, *pose), atol=0.1)
    assert share.dtype == np.float32
