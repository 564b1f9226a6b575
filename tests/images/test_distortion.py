"""Photometric distortion against matplotlib's colours, and its draws against their law."""

import jax
import jax.numpy as jnp
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
import numpy as np
import pytest

from beit_jax.images import distortion


@pytest.fixture(scope='module')
def images():
    """Random pixels, greys, black, white and pure colours."""
    images = np.random.default_rng(0).random((5, 11, 13, 3)).astype(np.float32)
    images[0, :3] = images[0, :3, :, :1]
    images[1, 0, :8] = [[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]
    return images


def test_colours_as_matplotlib(images):
    hsv = np.stack(distortion.rgb_to_hsv(jnp.asarray(images)), axis=-1)
    np.testing.assert_allclose(hsv, rgb_to_hsv(images), atol=1e-5)
    np.testing.assert_allclose(distortion.hsv_to_rgb(*np.moveaxis(hsv, -1, 0)), images, atol=1e-5)


@pytest.mark.parametrize('contrast_first', [False, True])
def test_distort(images, contrast_first):
    brightness, factors, hue = 0.1, np.array([1.4, 0.6], np.float32), -0.07
    for image in images:
        found = distortion.distort(jnp.asarray(image), brightness, factors, hue, contrast_first)
        wanted = np.clip(image + 0.1, 0, 1)
        wanted = np.clip(wanted * 1.4, 0, 1) if contrast_first else wanted
        h, s, v = np.moveaxis(rgb_to_hsv(wanted), -1, 0)
        changed = (h - 0.07) % 1, np.clip(s * 0.6, 0, 1), v
        wanted = hsv_to_rgb(np.stack(changed, axis=-1))
        wanted = wanted if contrast_first else np.clip(wanted * 1.4, 0, 1)
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_draws():
    """Each change in half of the pictures, uniform in its range."""
    keys = jax.random.split(jax.random.key(0), 4001)
    brightness, factors, hue, first = jax.vmap(distortion.draw_distortion)(keys)
    for amounts, limit in (
        (brightness, 32 / 255),
        (factors[:, 0] - 1, 0.5),
        (factors[:, 1] - 1, 0.5),
        (hue, 0.1),
    ):
        drawn = np.asarray(amounts)[np.asarray(amounts) != 0]
        assert len(drawn) / 4001 == pytest.approx(0.5, abs=0.03)
        assert np.abs(drawn).max() == pytest.approx(limit, rel=0.01)
        assert drawn.std() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert np.mean(first) == pytest.approx(0.5, abs=0.03)


def test_a_view_decides(images):
    """Not its row, nor the batch."""
    views = np.array([3, 141, 5, 9, 2], np.uint32)
    found = distortion.distort_views(7, views, jnp.asarray(images))
    order = np.array([4, 2, 0])
    reordered = distortion.distort_views(7, views[order], jnp.asarray(images[order]))
    np.testing.assert_allclose(reordered, found[order], atol=1e-6)
    assert np.abs(found - distortion.distort_views(8, views, jnp.asarray(images))).max() > 0.05
    assert found.min() >= 0 and found.max() <= 1
