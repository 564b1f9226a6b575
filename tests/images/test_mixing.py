"""Mixup, CutMix and random erasing against NumPy and timm."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
import torch

from beit_jax.errors import RequestError
from beit_jax.images.mixing import MixConfig, _inside, draw_rectangle, draw_weights, erase, mix

HEIGHT, WIDTH = 23, 29


@pytest.fixture(scope='module')
def timm():
    path = Path(importlib.util.find_spec('timm').origin).parent / 'data' / 'mixup.py'
    spec = importlib.util.spec_from_file_location('timm_mixup', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(config, count=2000):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_weights(key, config, HEIGHT, WIDTH)))(keys))


def test_mixup_shares():
    drawn = weights(MixConfig(cutmix=0.0))
    assert np.all(drawn == drawn[:, :1, :1])
    assert stats.kstest(drawn[:, 0, 0], stats.beta(0.8, 0.8).cdf).pvalue > 0.01


def cutmix_box(share, centre, height, width):
    """timm 0.3.2's, which the official code takes: (top, bottom, left, right). Later ones (1.0.31)
    make an odd side a pixel longer."""
    edges = []
    for size, middle in zip((height, width), centre):
        half = int(size * np.sqrt(1 - share)) // 2
        edges += [max(0, middle - half), min(size, middle + half)]
    return edges


def test_cutmix_boxes():
    """The area of the box, cut off at the border, is distributed as timm's."""
    drawn = weights(MixConfig(mixup=0.0))
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    random, theirs = np.random.default_rng(0), []
    for _ in drawn:
        centre = random.integers((HEIGHT, WIDTH))
        top, bottom, left, right = cutmix_box(random.beta(1.0, 1.0), centre, HEIGHT, WIDTH)
        theirs.append(1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH))
    assert stats.ks_2samp(drawn.mean((1, 2)), theirs).pvalue > 0.01
    outside = np.stack([np.any(drawn == 0, axis=2), np.any(drawn == 0, axis=1)[:, :HEIGHT]])
    assert outside.any(), 'no box at all'
    for inside in drawn[:50] == 0:  # one rectangle: rows times columns
        np.testing.assert_array_equal(inside, np.outer(inside.any(axis=1), inside.any(axis=0)))
    corners = np.mean(drawn[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0, axis=0)
    assert corners.max() - corners.min() < 0.05


def test_sides_of_cutmix():
    """To the pixel: of an odd side one is left out (172 where 173 would fit)."""
    random = np.random.default_rng(0)
    draws = [(1 - (173.5 / 224) ** 2, 112.5), *random.uniform((0, 0), (1, 224), (99, 2)).tolist()]
    for share, place in draws:
        top, bottom, *_ = cutmix_box(share, [int(place)] * 2, 224, 224)
        ours = np.flatnonzero(_inside(224, np.sqrt(1 - share), place / 224))
        assert ours.tolist() == list(range(top, bottom))
        assert place != 112.5 or len(ours) == 172


def test_switch_and_probability():
    both = weights(MixConfig())
    cut = np.array([set(np.unique(picture)) <= {0.0, 1.0} for picture in both])
    assert cut.mean() == pytest.approx(0.5, abs=0.04)
    rarely = weights(MixConfig(probability=0.25))
    assert np.all(rarely == 1, axis=(1, 2)).mean() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize('config', [MixConfig(cutmix=0.0), MixConfig(mixup=0.0)])
def test_a_mixed_batch(config, timm):
    """Against NumPy; targets against timm's too, whose pairs are other ones."""
    images = np.random.default_rng(0).normal(size=(6, HEIGHT, WIDTH, 3)).astype(np.float32)
    labels = np.array([3, 1, 4, 4, 0, 2])
    off = 0.1 / 5
    targets = np.where(np.eye(5)[labels] > 0, 0.9 + off, off).astype(np.float32)
    kept = np.asarray(draw_weights(jax.random.key(5), config, HEIGHT, WIDTH))
    mixed, soft = mix(kept, jnp.asarray(images), jnp.asarray(targets))
    partner, left = [1, 0, 3, 2, 5, 4], kept[..., None]
    np.testing.assert_allclose(mixed, images * left + images[partner] * (1 - left), atol=1e-6)
    share = np.float64(kept.mean())
    np.testing.assert_allclose(soft, targets * share + targets[partner] * (1 - share), atol=1e-6)
    np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
    for i in (0, 2, 4):
        pair = torch.tensor(labels[i : i + 2])
        theirs = timm.mixup_target(pair, 5, lam=float(share), smoothing=0.1)
        np.testing.assert_allclose(soft[i : i + 2], theirs, atol=1e-6)


def test_pairs():
    MixConfig().check_batch(6)
    MixConfig(mixup=0.0, cutmix=0.0).check_batch(7)
    message = r'config.batch_size is 7: make it even, or set config.mix.mixup=0'
    with pytest.raises(RequestError, match=message):
        MixConfig().check_batch(7)


def test_erased_rectangles():
    size, probability = 224, 0.25
    keys = jax.random.split(jax.random.key(0), 8000)
    draw = jax.jit(jax.vmap(lambda key: draw_rectangle(key, probability, size, size)))
    top, left, height, width = np.asarray(draw(keys)).T
    erased = height > 0
    assert erased.mean() == pytest.approx(probability, abs=0.02)
    assert np.all((top >= 0) & (left >= 0) & (top + height <= size) & (left + width <= size))
    area, aspect = (height * width)[erased] / size**2, np.log(height[erased] / width[erased])
    assert area.min() > 0.019 and area.max() < 0.335
    # all areas fit at this aspect, so their distribution is uniform; the place is uniform in what
    # is left
    assert stats.kstest(aspect, stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).pvalue > 0.01
    assert stats.kstest(area, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 0.01
    assert stats.kstest(top[erased] / (size - height[erased]), stats.uniform().cdf).pvalue > 0.001


def test_erasing():
    keys, images = jax.random.split(jax.random.key(1), 300), jnp.full((300, HEIGHT, WIDTH, 3), 7.0)
    result = np.asarray(erase(keys, images, 0.5))
    changed = result != 7
    np.testing.assert_array_equal(changed.any(-1), changed.all(-1))
    noise = result[changed]
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)
    assert changed.any((1, 2, 3)).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(erase(keys, images, 0.5), result)
    assert erase(keys, images, 0.0) is images
