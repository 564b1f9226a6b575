"""The built-in pictures: the same everywhere, labelled rightly, figures and masks exact, each level
harder by what it says."""

import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
from skimage.draw import polygon2mask
from skimage.measure import label as components

from beit_jax.data import config
from beit_jax.data.sources import shapes
from beit_jax.data.sources.shapes import (
    LEVELS,
    SHAPES,
    ShapesSource,
    coverage,
    draw,
    signed_distance,
)

DIGESTS = {
    'easy': '94771d65817e',
    'rotated': 'abef55acade1',
    'textured': 'd3ca9c1d07a9',
    'cluttered': '3489f3a64620',
    'occluded': 'f9da3f9cc64b',
    'medium': '8ddc7285f6d6',
    'hard': 'c8ae41cc706a',
}


@pytest.mark.parametrize('level', LEVELS)
def test_golden(level):
    """A change of a picture changes every result on `shapes`: make it knowingly."""
    source = ShapesSource(100, 37, level, 'train')
    pictures = np.stack([source.read(index).image for index in range(20)])
    # a coarse digest: float rounding may differ by a grey level between machines
    assert (
        hashlib.sha256((pictures.astype(int).sum((1, 2, 3)) // 3000).tobytes()).hexdigest()[:12]
        == DIGESTS[level]
    )


def test_an_example_depends_on_its_index_and_split_alone():
    short, long = ShapesSource(10, 23, 'easy', 'train'), ShapesSource(1000, 23, 'easy', 'train')
    np.testing.assert_array_equal(short.read(7).image, long.read(7).image)
    assert short.fingerprint != long.fingerprint
    assert np.any(short.read(7).image != ShapesSource(10, 23, 'easy', 'evaluate').read(7).image)


def test_labels_are_even_and_the_same_on_every_level():
    counts = np.bincount(
        [ShapesSource(3000, 8, 'easy', 'train').label(i) for i in range(3000)], minlength=10
    )
    # 5 standard deviations
    assert counts.sum() == 3000 and counts.min() > 220 and counts.max() < 380
    labels = [
        [ShapesSource(20, 8, level, 'train').read(i).label for i in range(20)] for level in LEVELS
    ]
    assert labels == [[ShapesSource(20, 8, 'easy', 'train').label(i) for i in range(20)]] * len(
        LEVELS
    )


@pytest.mark.parametrize('shape', sorted(shapes._POLYGONS))
def test_distance_to_a_polygon(shape):
    """Inside is negative, as scikit-image fills the polygon; the distance changes by at most the
    step."""
    size = 101
    centres = (np.arange(size) + 0.5) * (2.4 / size) - 1.2
    x, y = np.meshgrid(centres, centres, indexing='xy')
    distance = signed_distance(shape, x.astype(np.float32), y.astype(np.float32))
    corners = (np.asarray(shapes._POLYGONS[shape]) + 1.2) * size / 2.4 - 0.5
    filled = polygon2mask((size, size), corners[:, ::-1])
    disagree = (distance < 0) != filled
    assert disagree.mean() < 0.01 and np.abs(distance[disagree]).max(initial=0) < 2.4 / size
    assert np.abs(np.diff(distance, axis=0)).max() <= 2.4 / size * 1.01


def exact_coverage(shape, size, half_size, centre, angle):
    """What `coverage` says, of the whole picture and from `signed_distance` itself, float64 [size,
    size]."""
    centres = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid((centres - centre[0]) / half_size, (centres - centre[1]) / half_size)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.clip(
        0.5 - signed_distance(shape, cos * x + sin * y, cos * y - sin * x) * half_size * size / 2,
        0,
        1,
    )


@pytest.mark.parametrize(
    ('shape', 'size'),
    [*((shape, size) for shape in (*SHAPES, 'bar') for size in (32, 61)), ('corner', 256)],
)
def test_coverage_is_exact(shape, size):
    rng = np.random.default_rng(size)
    for half_size in (0.1, 0.17, 0.43, 0.8) * 5:
        pose = half_size, rng.uniform(-1, 1, 2).tolist(), rng.uniform(0, 2 * math.pi)
        box, share = coverage(shape, size, *pose)
        whole = np.zeros((size, size), np.float32)
        whole[box] = share
        np.testing.assert_allclose(whole, exact_coverage(shape, size, *pose), atol=0.1)
    assert share.dtype == np.float32


def test_mask_is_the_bright_figure():
    """On the easy level the figure is far brighter than the ground, so that a threshold finds the
    mask."""
    source = ShapesSource(50, 61, 'easy', 'train')
    for index in range(50):
        image, mask, label = source.draw(index)
        assert np.mean((image.mean(-1) > 115) != mask) < 0.01
        assert (
            components(mask, connectivity=2).max() in (1, 2)
            if SHAPES[label] == 'hourglass'
            else components(mask).max() == 1
        )


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each `coverage`: (shape, size, half_size, centre, angle)."""
    calls = []
    monkeypatch.setattr(shapes, 'coverage', lambda *args: (calls.append(args), coverage(*args))[1])
    return calls


@pytest.mark.parametrize('level', LEVELS)
def test_mask_is_the_figure_that_is_seen(level, drawn):
    """More than half covered by the figure, and at most half by what stands in front of it."""
    for index in range(10):
        drawn.clear()
        _, mask, label = draw(LEVELS[level], 61, (5, index))
        figure, *front = drawn[LEVELS[level].clutter :]
        assert figure[0] == SHAPES[label]
        assert [call[0] for call in front] == {'': [], 'bar': ['bar'], 'patch': ['square']}[
            LEVELS[level].occlusion
        ]
        shares = [exact_coverage(*call) for call in (figure, *front)]
        seen = (shares[0] > 0.5) & ~np.any([share > 0.5 for share in shares[1:]], 0)
        unclear = np.any([np.abs(share - 0.5) < 0.1 for share in shares], 0)
        assert unclear.mean() < 0.05
        np.testing.assert_array_equal(mask | unclear, seen | unclear)


def test_each_rung_adds_one_thing():
    assert tuple(LEVELS) == config.LEVELS
    rungs = [
        dataclasses.asdict(LEVELS[name])
        for name in ('easy', 'rotated', 'textured', 'cluttered', 'occluded')
    ]
    added = [
        {name for name in above if above[name] != below[name]}
        for below, above in itertools.pairwise(rungs)
    ]
    assert added == [{'rotation'}, {'texture'}, {'clutter', 'others'}, {'occlusion'}]


def test_rotated_turns_by_any_angle(drawn):
    for level in ('easy', 'rotated'):
        for index in range(50):
            draw(LEVELS[level], 11, (5, index))
    easy, rotated = drawn[:50], drawn[50:]
    assert [call[:4] for call in easy] == [call[:4] for call in rotated]
    assert max(call[4] for call in easy) < 0.5
    assert np.all(np.histogram([call[4] for call in rotated], 4, (0, 2 * math.pi))[0] > 5)


def pictures(level, count=40):
    """(brightness float [61, 61] in [0, 1], mask) of the same examples on each level."""
    return [
        (image.mean(-1) / 255, mask)
        for image, mask, _ in (draw(LEVELS[level], 61, (5, index)) for index in range(count))
    ]


def test_textured_has_stripes_on_a_dark_ground_and_a_bright_figure():
    spread = lambda pixels: np.subtract(*np.quantile(pixels, [0.8, 0.2]))
    figures = []
    for (plain, plain_mask), (striped, mask) in zip(pictures('rotated'), pictures('textured')):
        assert max(spread(plain[plain_mask]), spread(plain[~plain_mask])) < 0.06
        assert spread(striped[~mask]) > 0.1
        assert np.quantile(striped[~mask], 0.95) < 0.4
        assert np.quantile(striped[mask], 0.05) > 0.5
        figures.append(spread(striped[mask]))  # little where they are brighter than white
    assert np.mean(figures) > 0.1


def test_cluttered_has_four_small_figures_of_a_brightness_between(drawn):
    grey = {
        level: np.mean(
            [
                np.mean((image[~mask] > 0.4) & (image[~mask] < 0.7))
                for image, mask in pictures(level)
            ]
        )
        for level in ('textured', 'cluttered')
    }
    assert grey['textured'] < 0.01 and grey['cluttered'] > 0.03
    behind, figures = [call for i, call in enumerate(drawn[40:]) if i % 5 < 4], drawn[44::5]
    assert len(figures) == 40 and {call[0] for call in behind} == set(SHAPES)
    assert max(call[2] for call in behind) < 0.25 and min(call[2] for call in figures) > 0.5


def test_occluded_hides_a_part_of_the_same_figure():
    for (_, whole), (image, mask) in zip(pictures('cluttered'), pictures('occluded')):
        assert np.all(whole[mask]) and 0.03 < np.mean(~mask[whole]) < 0.5
        assert image[whole & ~mask].mean() < image[mask].mean() - 0.1


def test_hard_is_harder():
    spread = {
        level: np.std(
            [ShapesSource(40, 23, level, 'train').read(i).image.mean() for i in range(40)]
        )
        for level in LEVELS
    }
    assert spread['easy'] < spread['medium'] < spread['hard']


def test_noise_is_normal():
    numbers = shapes._quantiles().astype(float)
    np.testing.assert_allclose(
        [np.mean(numbers**k) for k in (1, 2, 3, 4)], [0, 1, 0, 3], atol=0.005
    )
