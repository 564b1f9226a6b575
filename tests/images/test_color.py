"""Colour jitter against NumPy and Pillow, and its draws against their law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance
import pytest
import scipy.stats

from beit_jax.images.color import (
    apply_jitter,
    draw_jitter,
    jitter,
    jitter_views,
    normalize,
    to_float,
)
from tests.photos import ORIGINALS

ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
STRENGTHS = (0.4, 0.3, 0.2)


@pytest.fixture(scope='module')
def photo():
    """uint8 [97, 131, 3]"""
    return np.asarray(Image.open(ORIGINALS[0]).convert('RGB').resize((131, 97)))


def greys(images):
    """[..., 3] -> [...]: luma by ITU-R 601."""
    red, green, blue = np.moveaxis(images, -1, 0)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def expected_jitter(image, order, factors, mean):
    """torchvision's ColorJitter without hue in float64, from its documentation, on a part of a
    picture of that mean grey."""
    for operation in order:
        factor = factors[operation]
        if operation == 0:
            image, mean = factor * image, min(factor * mean, 1)
        elif operation == 1:
            image = factor * image + (1 - factor) * mean
        else:
            image = factor * image + (1 - factor) * np.stack([greys(image)] * 3, axis=-1)
        image = np.clip(image, 0, 1)
    return image


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_jitter_of_one_picture(photo, order):
    for factors in ((1.4, 0.6, 1.3), (0.7, 1.4, 0.6)):
        expected = expected_jitter(photo / 255, order, factors, 0.37)
        image = jnp.asarray(photo / 255, jnp.float32)
        jittered = jax.jit(apply_jitter)(
            image, jnp.array(order), jnp.array(factors, jnp.float32), jnp.float32(0.37)
        )
        actual = np.asarray(jittered)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        assert actual.min() >= 0 and actual.max() <= 1
        assert np.abs(actual - photo / 255).mean() > 0.02


@pytest.mark.parametrize('operation', range(3))
@pytest.mark.parametrize('factor', [0.0, 0.6, 0.83, 1.0, 1.27, 1.4])
def test_each_operation_agrees_with_pillow(photo, operation, factor):
    """Others at factor 1.

    Pillow cuts the result to a whole number and rounds greys: one and a half levels.
    """
    factors = jnp.ones(3).at[operation].set(factor)
    image = jnp.asarray(photo / 255, jnp.float32)
    grey = np.asarray(Image.fromarray(photo).convert('L')).mean() / 255
    actual = np.asarray(jax.jit(apply_jitter)(image, jnp.arange(3), factors, grey)) * 255
    expected = np.asarray(ENHANCE[operation](Image.fromarray(photo)).enhance(factor), float)
    error = np.abs(actual - expected)
    assert error.max() < (1e-3 if factor == 1 else 1.5), error.max()


def test_a_crop_is_jittered_as_in_the_whole_picture():
    """As torchvision jitters by Pillow before it crops. Pillow cuts to whole numbers after each
    step, on average by 1.2 of 255; with the crop's own grey it was another 1.7 (95 %: 9)."""
    random, errors = np.random.default_rng(0), []
    for original in ORIGINALS:
        whole = Image.open(original).convert('RGB').resize((233, 179))
        grey = greys(np.asarray(whole) / 255).mean()
        for _ in range(30):
            order, factors = random.permutation(3), random.uniform(0.6, 1.4, 3).astype(np.float32)
            jittered = whole
            for operation in order:
                jittered = ENHANCE[operation](jittered).enhance(float(factors[operation]))
            top, left = random.integers(0, 179 - 61), random.integers(0, 233 - 61)
            part = np.asarray(whole)[top : top + 61, left : left + 61] / np.float32(255)
            ours = np.asarray(jax.jit(apply_jitter)(part, order, factors, jnp.float32(grey))) * 255
            theirs = np.asarray(jittered, float)[top : top + 61, left : left + 61]
            errors.append(np.abs(ours - theirs).mean())
    assert np.mean(errors) < 1.5 and np.quantile(errors, 0.95) < 2.5, errors


def test_views_are_jittered_alike(photo):
    """The small view is the large one at half the size: it stays so.

    Each image goes by its own key.
    """
    images_BHWC = np.stack([photo, photo[:, ::-1], photo]).astype(np.float32) / 255
    large_BHWC = images_BHWC.repeat(2, axis=1).repeat(2, axis=2)
    keys_B = jax.random.split(jax.random.key(0), 3)
    greys_B = greys(images_BHWC).mean((1, 2)).astype(np.float32)
    run = jax.jit(jitter, static_argnums=2)
    large, small = (run(keys_B, x, STRENGTHS, greys_B) for x in (large_BHWC, images_BHWC))
    assert large.shape == (3, 194, 262, 3) and small.shape == (3, 97, 131, 3)
    np.testing.assert_allclose(large[:, ::2, ::2], small, atol=1e-5)
    assert np.abs(small[0] - small[2]).mean() > 0.01
    assert small.min() >= 0 and small.max() <= 1
    alone = run(keys_B[2:], images_BHWC[2:], STRENGTHS, greys_B[2:])
    np.testing.assert_allclose(alone[0], small[2], atol=1e-6)
    order, factors = draw_jitter(keys_B[1], STRENGTHS)
    expected = expected_jitter(
        images_BHWC[1], np.asarray(order), np.asarray(factors, float), greys_B[1]
    )
    np.testing.assert_allclose(small[1], expected, atol=1e-5)


def test_strength_zero_changes_nothing(photo):
    images_BHWC = photo[None].astype(np.float32) / 255
    keys_B = jax.random.split(jax.random.key(0), 1)
    assert jitter_views(0, {}, images_BHWC, (0.0, 0.0, 0.0)) is images_BHWC
    brighter = jitter(keys_B, images_BHWC, (0.4, 0.0, 0.0), np.float32([0.5]))
    factor = float(draw_jitter(keys_B[0], (0.4, 0.0, 0.0))[1][0])
    np.testing.assert_allclose(brighter, (images_BHWC * factor).clip(0, 1), atol=1e-5)


def test_draws():
    """Orders and factors are uniform and independent: 10 tests at 1e-5 each (the seed is fixed)."""
    keys = jax.random.split(jax.random.key(3), 20_000)
    draws = jax.vmap(lambda key: draw_jitter(key, (0.4, 0.3, 1.2)))(keys)
    orders, factors = map(np.asarray, draws)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and scipy.stats.chisquare(counts).pvalue > 1e-5
    for values, low, high in zip(factors.T, (0.6, 0.7, 0.0), (1.4, 1.3, 2.2)):
        assert low <= values.min() and values.max() <= high + 1e-6
        assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-5
    for one, two in itertools.combinations([*factors.T, orders[:, 0]], 2):
        assert scipy.stats.spearmanr(one, two).pvalue > 1e-5


def test_to_float_and_normalize(photo):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = to_float(jnp.asarray(photo))
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, photo / 255, atol=1e-7)
    np.testing.assert_array_equal(to_float(jnp.array([0, 255], jnp.uint8)), [0, 1])
    np.testing.assert_allclose(normalize(images, mean, std), (photo / 255 - mean) / std, atol=1e-5)


def test_jitter_of_other_channels():
    """Brightness and contrast, about the mean grey of the whole picture; nothing else."""
    random = np.random.default_rng(1)
    images, greys = random.random((4, 3, 5, 12), np.float32), random.random(4).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 4)
    found = jitter(keys, jnp.asarray(images), (0.4, 0.3, 0.0), jnp.asarray(greys))
    for row, (key, one) in enumerate(zip(keys, found)):
        image, grey = images[row].astype(np.float64), greys[row]
        order, factors = draw_jitter(key, (0.4, 0.3, 0.0))
        assert factors[2] == 1
        for operation in np.asarray(order):
            if operation == 0:
                image, grey = (image * factors[0]).clip(0, 1), min(grey * factors[0], 1)
            elif operation == 1:
                image = (grey + factors[1] * (image - grey)).clip(0, 1)
        np.testing.assert_allclose(one, image, atol=1e-6)


def test_values_of_sixteen_bits():
    values = jnp.asarray([0, 1, 65535], jnp.uint16)
    np.testing.assert_allclose(to_float(values), [0, 1 / 65535, 1], rtol=1e-7)
