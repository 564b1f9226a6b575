"""The statistical tests of a function have together a false alarm in 10,000 new seeds (the seeds are fixed, so none)."""
import json
from pathlib import Path
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from beit_jax.errors import RequestError
from beit_jax.images.masking import MaskConfig, count_blocks, draw_masks
from beit_jax.tools.benchmark import official_mask

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'mask_distribution.json').read_text())
GRID = (14, 14)
FALSE_ALARM = 1e-4


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def same_distribution(counts, expected_counts):
    """p of a chi-square test of homogeneity of two histograms {value: count}; neighbours are merged until each bin holds ten of either."""
    bins = [[0, 0]]
    for value in sorted({*counts, *expected_counts}):
        if min(bins[-1]) >= 10:
            bins.append([0, 0])
        bins[-1] = [bins[-1][0] + counts.get(value, 0), bins[-1][1] + expected_counts.get(value, 0)]
    if min(bins[-1]) < 10 and len(bins) > 1:
        last = bins.pop()
        bins[-1] = [bins[-1][0] + last[0], bins[-1][1] + last[1]]
    return scipy.stats.chi2_contingency(np.array(bins).T).pvalue if len(bins) > 1 else 1.0


def histogram(values):
    return {int(value): int(count) for value, count in zip(*np.unique(values, return_counts=True))}


def golden(name):
    return {int(value): count for value, count in GOLDEN[name]['hist'].items()}


def test_distribution_of_blockwise_masks():
    """50,000 masks against 200,000 of the official algorithm: five tests."""
    count = 50_000
    masks = np.asarray(draw_masks(keys(count), MaskConfig(), GRID).mask_BP).reshape(count, *GRID)
    assert same_distribution(histogram(masks.sum(axis=(1, 2))), golden('count')) > FALSE_ALARM / 5
    assert same_distribution(histogram(count_blocks(keys(count), MaskConfig(), GRID)), golden('blocks')) > FALSE_ALARM / 5
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    edges = masks[:, [0, 0, 13, 13, 6, 7, 6, 7], [6, 7, 6, 7, 0, 0, 13, 13]]
    centres = masks[:, [6, 6, 7, 7], [6, 7, 6, 7]]
    for name, hidden in (('corner', corners), ('middle_of_an_edge', edges), ('centre', centres)):
        share, expected = hidden.mean(axis=1), GOLDEN['frequency_masked'][name]
        z = (share.mean() - expected) / np.sqrt(share.var() / count + expected * (1 - expected) / GOLDEN['count']['n'])
        assert 2 * scipy.stats.norm.sf(abs(z)) > FALSE_ALARM / 5, (name, z)


def test_the_reference_itself():
    rng = random.Random(0)
    masks = np.array([official_mask(rng, *GRID, MaskConfig()) for _ in range(10_000)])
    assert same_distribution(histogram(masks.sum(axis=(1, 2))), golden('count')) > FALSE_ALARM


@pytest.mark.parametrize('grid, settings', [
    ((7, 11), {'patches': 23, 'min_block': 5}), ((11, 7), {'patches': 31, 'min_block': 3, 'min_aspect': 0.2}), ((14, 14), {}),
    ((5, 37), {'patches': 41, 'min_block': 4}), ((3, 67), {'patches': 61, 'min_block': 2}),  # rows of two and three words
    ((7, 11), {'patches': 13}), ((2, 2), {'patches': 2, 'min_block': 1})])  # less than a block; next to nothing
def test_frequency_of_each_patch(grid, settings):
    """Against the official algorithm, a z-test for each patch and one test of the counts."""
    config, count, patches = MaskConfig(**settings), 6_000, grid[0] * grid[1]
    mask_BP = np.asarray(draw_masks(keys(count * 3, 1), config, grid).mask_BP)
    rng = random.Random(2)
    expected_BP = np.array([official_mask(rng, *grid, config) for _ in range(count)]).reshape(count, patches)
    assert same_distribution(histogram(mask_BP.sum(axis=1)), histogram(expected_BP.sum(axis=1))) > FALSE_ALARM / (patches + 1)
    p = np.concatenate([mask_BP, expected_BP]).mean(axis=0)
    z = (mask_BP.mean(axis=0) - expected_BP.mean(axis=0)) / np.sqrt(np.maximum(p * (1 - p), 1e-9) * (1 / len(mask_BP) + 1 / count))
    assert 2 * scipy.stats.norm.sf(np.abs(z)).min() > FALSE_ALARM / (patches + 1), np.abs(z).max()


@pytest.mark.parametrize('grid, config', [
    (GRID, MaskConfig()), ((7, 11), MaskConfig(patches=23, min_block=5)), ((3, 67), MaskConfig(patches=61, min_block=2)),
    ((7, 11), MaskConfig(patches=13)), ((7, 11), MaskConfig(kind='random', patches=23)), ((1, 37), MaskConfig(kind='random', patches=37))])
def test_slots_and_weights(grid, config):
    masks = draw_masks(keys(997), config, grid)
    shapes = [(997, grid[0] * grid[1]), (997, config.patches), (997, config.patches)]
    assert [(x.shape, x.dtype) for x in masks] == list(zip(shapes, (jnp.bool, jnp.int32, jnp.float32)))
    for mask_P, slots_K, weights_K in zip(*map(np.asarray, masks)):
        hidden = np.flatnonzero(mask_P)
        used = len(hidden)
        assert used <= config.patches and (used == config.patches or config.kind == 'blockwise')
        np.testing.assert_array_equal(slots_K, np.pad(hidden, (0, config.patches - used)))
        np.testing.assert_array_equal(weights_K, np.arange(config.patches) < used)


def test_a_block_is_a_rectangle():
    config = MaskConfig(patches=23, min_block=101)  # many masks end after one block
    mask_BP, blocks_B = draw_masks(keys(5003), config, (7, 37)).mask_BP, count_blocks(keys(5003), config, (7, 37))
    single = np.asarray(mask_BP)[np.asarray(blocks_B) == 1].reshape(-1, 7, 37)
    assert len(single) > 100
    for mask in single:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        assert all(np.ptp(np.flatnonzero(side)) + 1 == side.sum() < len(side) for side in (rows, columns))


@pytest.mark.parametrize('config', [MaskConfig(), MaskConfig(kind='random')])
def test_a_key_decides_alone(config):
    whole, again = (draw_masks(keys(41), config, GRID) for _ in range(2))
    part = draw_masks(keys(41)[17:24], config, GRID)
    for one, two, three in zip(whole, again, part):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one[17:24], three)
    assert len(np.unique(whole.mask_BP, axis=0)) == 41


def test_random_masks_are_uniform():
    """Exactly `patches` of 77, each as often as the others, each pair as often as the others."""
    count = 20_000
    mask_BP = np.asarray(draw_masks(keys(count), MaskConfig(kind='random', patches=23), (7, 11)).mask_BP).astype(float)
    assert (mask_BP.sum(axis=1) == 23).all()
    together = mask_BP.T @ mask_BP
    one, two = 23 / 77, 23 / 77 * 22 / 76
    tests = 77 * 78 / 2
    for observed, p in ((np.diag(together), one), (together[np.triu_indices(77, 1)], two)):
        z = (observed - count * p) / np.sqrt(count * p * (1 - p))
        assert 2 * scipy.stats.norm.sf(np.abs(z)).min() > FALSE_ALARM / tests, np.abs(z).max()


@pytest.mark.parametrize('settings, message', [
    ({'kind': 'block'}, 'Did you mean blockwise'), ({'patches': 0}, 'at least 1'), ({'patches': -3}, 'mask.patches is -3'),
    ({'min_block': 0}, 'min_block is 0'), ({'min_aspect': 0.0}, 'min_aspect is 0.0'), ({'min_aspect': 1.5}, 'up to 1')])
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        MaskConfig(**settings)


def test_grids_that_are_refused():
    MaskConfig(patches=77).check_grid((7, 11))
    MaskConfig(kind='random', patches=5).check_grid((1, 7))
    with pytest.raises(RequestError, match='patches is 78 but a picture has 7 x 11 = 77 patches'):
        MaskConfig(patches=78).check_grid((7, 11))
    with pytest.raises(RequestError, match='at least 2 x 2 patches, the picture has 1 x 7'):
        MaskConfig(patches=5).check_grid((1, 7))
