"""Masks against the official algorithm.

The statistical tests of a function have together a false alarm in 10,000 new seeds (the seeds are
fixed, so none).
"""

import dataclasses
import functools
import json
from pathlib import Path
import random

import jax
import numpy as np
import pytest
import scipy.stats

from beit_jax.errors import RequestError
from beit_jax.images.masking import MaskConfig, Masks, count_blocks, draw_masks
from beit_jax.performance.mask_benchmark import official_mask
from beit_jax.settings.mapping import from_mapping

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'mask_distribution.json').read_text())
GRID = (14, 14)
FALSE_ALARM = 1e-4


def keys(count):
    return jax.random.split(jax.random.key(1), count)


@functools.cache
def draw(config, grid):
    """20,000 masks, NumPy."""
    return Masks(*map(np.asarray, draw_masks(keys(20_000), config, grid)))


def same_distribution(counts, expected_counts):
    """p of a chi-square test of homogeneity of two histograms {value: count}.

    Neighbours are merged until each bin holds ten of either.
    """
    bins = [[0, 0]]
    for value in sorted({*counts, *expected_counts}):
        if min(bins[-1]) >= 10:
            bins.append([0, 0])
        bins[-1][0] += counts.get(value, 0)
        bins[-1][1] += expected_counts.get(value, 0)
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
    blocks = histogram(count_blocks(keys(count), MaskConfig(), GRID))
    assert same_distribution(blocks, golden('blocks')) > FALSE_ALARM / 5
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    edges = masks[:, [0, 0, 13, 13, 6, 7, 6, 7], [6, 7, 6, 7, 0, 0, 13, 13]]
    centres = masks[:, [6, 6, 7, 7], [6, 7, 6, 7]]
    for name, hidden in (('corner', corners), ('middle_of_an_edge', edges), ('centre', centres)):
        share, expected = hidden.mean(axis=1), GOLDEN['frequency_masked'][name]
        variance = share.var() / count + expected * (1 - expected) / GOLDEN['count']['n']
        z = (share.mean() - expected) / np.sqrt(variance)
        assert 2 * scipy.stats.norm.sf(abs(z)) > FALSE_ALARM / 5, (name, z)


def test_the_reference_itself():
    rng = random.Random(0)
    masks = np.array([official_mask(rng, *GRID, MaskConfig()) for _ in range(10_000)])
    assert same_distribution(histogram(masks.sum(axis=(1, 2))), golden('count')) > FALSE_ALARM


SMALL = MaskConfig(patches=23, min_block=5)
# fewer patches than a block has: many masks end after the first
SINGLE = MaskConfig(patches=23, min_block=101)
UNIFORM = MaskConfig(kind='random', patches=23)


@pytest.mark.parametrize(
    'grid, config',
    [
        ((11, 5), SMALL),
        ((7, 37), SINGLE),
        ((2, 2), MaskConfig(patches=2, min_block=1)),
        ((5, 37), MaskConfig(patches=41, min_block=4, min_aspect=0.2)),  # a row of two words
        ((3, 67), MaskConfig(patches=61, min_block=2)),  # of three
    ],
)
def test_frequency_of_each_patch(grid, config):
    """Against the official algorithm, a z-test for each patch and one test of the counts."""
    mask_BP, count, patches = draw(config, grid).mask_BP, 6_000, grid[0] * grid[1]
    rng = random.Random(2)
    expected_BP = np.array([official_mask(rng, *grid, config) for _ in range(count)])
    expected_BP = expected_BP.reshape(count, patches)
    counts, expected = (histogram(masks.sum(axis=1)) for masks in (mask_BP, expected_BP))
    assert same_distribution(counts, expected) > FALSE_ALARM / (patches + 1)
    p = np.concatenate([mask_BP, expected_BP]).mean(axis=0)
    variance = np.maximum(p * (1 - p), 1e-9) * (1 / len(mask_BP) + 1 / count)
    z = np.abs(mask_BP.mean(axis=0) - expected_BP.mean(axis=0)) / np.sqrt(variance)
    assert 2 * scipy.stats.norm.sf(z).min() > FALSE_ALARM / (patches + 1), z.max()


@pytest.mark.parametrize(
    'grid, config', [((7, 5), MaskConfig(patches=31, min_block=11)), ((7, 37), SINGLE)]
)
def test_exact_masks_are_filled_up_uniformly(grid, config):
    """Each patch beside the blocks as often as any other, each pair as often as any other: z-tests
    with together FALSE_ALARM. The blocks are bit for bit those of a mask that is not filled up."""
    blocks_BP = draw(config, grid).mask_BP
    mask_BP, slots_BK, weights_BK = draw(dataclasses.replace(config, exact=True), grid)
    assert (mask_BP.sum(axis=1) == config.patches).all() and (weights_BK == 1).all()
    assert (np.take_along_axis(mask_BP, slots_BK, axis=1) == 1).all()
    assert (np.diff(slots_BK) > 0).all()
    assert (mask_BP >= blocks_BP).all()
    left_BP, filled_BP = (each.astype(float) for each in (~blocks_BP, mask_BP & ~blocks_BP))
    assert (filled_BP.sum(axis=1) > 1).mean() > 0.04
    left_B, filled_B, patches = left_BP.sum(axis=1), filled_BP.sum(axis=1), grid[0] * grid[1]
    single_B = filled_B / left_B
    pair_B = single_B * (filled_B - 1) / (left_B - 1)
    statistics = [
        (filled_BP.sum(axis=0), single_B @ left_BP, (single_B * (1 - single_B)) @ left_BP),
        [
            (filled_BP.T @ filled_BP)[np.triu_indices(patches, 1)],
            *(
                (left_BP.T @ (weight_B[:, None] * left_BP))[np.triu_indices(patches, 1)]
                for weight_B in (pair_B, pair_B * (1 - pair_B))
            ),
        ],
    ]
    for observed, expected, variance in statistics:
        enough = variance > 25  # of fewer than that the normal law does not hold
        z = (np.abs(observed - expected) / np.sqrt(np.maximum(variance, 1e-9)))[enough]
        assert len(z) == patches or len(variance) > patches
        assert 2 * scipy.stats.norm.sf(z).min() > FALSE_ALARM / (patches * (patches + 1) / 2), z


def test_exact_at_the_published_size():
    """75 of 196, which 67.5 % of the blockwise masks reach by themselves."""
    blocks_BP = np.asarray(draw_masks(keys(997), MaskConfig(), GRID).mask_BP)
    mask_BP = np.asarray(draw_masks(keys(997), MaskConfig(exact=True), GRID).mask_BP)
    assert (mask_BP.sum(axis=1) == 75).all()
    whole = blocks_BP.sum(axis=1) == 75
    assert 0.6 < whole.mean() < 0.75
    np.testing.assert_array_equal(mask_BP[whole], blocks_BP[whole])


@pytest.mark.parametrize(
    'grid, config',
    [
        ((11, 5), SMALL),
        ((7, 37), SINGLE),
        ((3, 67), MaskConfig(patches=61, min_block=2)),
        ((11, 5), UNIFORM),
    ],
)
def test_slots_and_weights(grid, config):
    mask_BP, slots_BK, weights_BK = draw(config, grid)
    assert mask_BP.shape == (20_000, grid[0] * grid[1])
    assert slots_BK.shape == weights_BK.shape == (20_000, config.patches)
    assert (mask_BP.dtype, slots_BK.dtype, weights_BK.dtype) == (np.bool_, np.int32, np.float32)
    for mask_P, slots_K, weights_K in zip(mask_BP[:997], slots_BK, weights_BK):
        hidden = np.flatnonzero(mask_P)
        used = len(hidden)
        assert used <= config.patches
        np.testing.assert_array_equal(slots_K, np.pad(hidden, (0, config.patches - used)))
        np.testing.assert_array_equal(weights_K, np.arange(config.patches) < used)


def test_nothing_is_hidden():
    """And the settings of masks do not matter."""
    config = MaskConfig(kind='none', patches=0, min_block=0, min_aspect=-1.0)
    config.check_grid((1, 1))
    MaskConfig(kind='none', patches=78, min_block=101).check_grid((7, 11))
    mask_BP, slots_BK, weights_BK = draw_masks(keys(5), config, (7, 11))
    assert mask_BP.shape == (5, 77) and not mask_BP.any()
    assert slots_BK.shape == weights_BK.shape == (5, 0)
    assert (mask_BP.dtype, slots_BK.dtype, weights_BK.dtype) == (np.bool_, np.int32, np.float32)


def test_a_block_is_a_rectangle():
    blocks = np.asarray(count_blocks(keys(20_000), SINGLE, (7, 37)))
    single = draw(SINGLE, (7, 37)).mask_BP[blocks == 1].reshape(-1, 7, 37)
    assert len(single) > 300
    for mask in single:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        for side in (rows, columns):
            assert np.ptp(np.flatnonzero(side)) + 1 == side.sum() < len(side)


@pytest.mark.parametrize('config', [SMALL, UNIFORM])
def test_a_key_decides_alone(config):
    """The same masks however many are drawn beside them."""
    whole = draw(config, (11, 5))
    for one, part in zip(whole, draw_masks(keys(20_000)[17:24], config, (11, 5))):
        np.testing.assert_array_equal(one[17:24], part)
    assert len(np.unique(whole.mask_BP[:41], axis=0)) == 41


def test_random_masks_are_uniform():
    """Exactly 23 of 55, each patch as often as the others, each pair as often as the others."""
    mask_BP = draw(UNIFORM, (11, 5)).mask_BP.astype(float)
    assert (mask_BP.sum(axis=1) == 23).all()
    together, count = mask_BP.T @ mask_BP, len(mask_BP)
    single, pairs = np.diag(together), together[np.triu_indices(55, 1)]
    for observed, p in ((single, 23 / 55), (pairs, 23 / 55 * 22 / 54)):
        z = np.abs(observed - count * p) / np.sqrt(count * p * (1 - p))
        assert 2 * scipy.stats.norm.sf(z).min() > FALSE_ALARM / (55 * 56 / 2), z.max()


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'kind': 'block'}, 'Did you mean blockwise'),
        ({'patches': 0}, r'mask.patches is 0: it takes a number in \[1, '),
        ({'patches': -3}, 'mask.patches is -3'),
        ({'min_block': 0}, 'min_block is 0'),
        ({'min_aspect': 0.0}, 'min_aspect is 0.0'),
        ({'min_aspect': 1.5}, r'it takes a number in \[0.01, 1\]'),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        from_mapping(MaskConfig, settings, 'mask.')


def test_grids_that_are_refused():
    MaskConfig(patches=77).check_grid((7, 11))
    MaskConfig(kind='random', patches=5).check_grid((1, 7))
    with pytest.raises(RequestError, match='patches is 78 but a picture has 7 x 11 = 77 patches'):
        MaskConfig(patches=78).check_grid((7, 11))
    with pytest.raises(RequestError, match='at least 2 x 2 patches, the picture has 1 x 7'):
        MaskConfig(patches=5).check_grid((1, 7))
