"""The built-in pictures: the same everywhere, labelled rightly, masks exact, each level harder by
what it says."""

import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
from skimage.measure import label as components

from beit_jax.data import config
from beit_jax.data.sources import shapes
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.shapes import LEVELS, SHAPES, ShapesSource, coverage, draw
from tests.data.batches import train
from tests.data.pairs import SIZE, VIEWS
from tests.data.sources.test_figures import exact_coverage

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
    # coarse: float rounding may differ by a grey level between machines
    sums = pictures.astype(int).sum((1, 2, 3)) // 3000
    assert hashlib.sha256(sums.tobytes()).hexdigest()[:12] == DIGESTS[level]


def test_an_example_depends_on_its_index_and_split_alone():
    short, long = ShapesSource(10, 23, 'easy', 'train'), ShapesSource(1000, 23, 'easy', 'train')
    np.testing.assert_array_equal(short.read(7).image, long.read(7).image)
    assert short.fingerprint != long.fingerprint
    assert np.any(short.read(7).image != ShapesSource(10, 23, 'easy', 'evaluate').read(7).image)


def test_labels_are_even_and_the_same_on_every_level():
    easy = ShapesSource(3000, 8, 'easy', 'train')
    counts = np.bincount([easy.label(i) for i in range(3000)], minlength=10)
    # 5 standard deviations
    assert counts.sum() == 3000 and counts.min() > 220 and counts.max() < 380
    for level in LEVELS:
        source = ShapesSource(20, 8, level, 'train')
        assert [source.read(i).label for i in range(20)] == [easy.label(i) for i in range(20)]


def test_mask_is_the_bright_figure():
    """On the easy level the figure is so much brighter that a threshold finds the mask."""
    source = ShapesSource(50, 61, 'easy', 'train')
    for index in range(50):
        image, mask, label = source.draw(index)
        assert np.mean((image.mean(-1) > 115) != mask) < 0.01
        if SHAPES[label] == 'hourglass':
            assert components(mask, connectivity=2).max() in (1, 2)
        else:
            assert components(mask).max() == 1


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each `coverage`: (shape, size, half_size, centre, angle)."""
    calls = []
    monkeypatch.setattr(shapes, 'coverage', lambda *args: calls.append(args) or coverage(*args))
    return calls


@pytest.mark.parametrize('level', LEVELS)
def test_mask_is_the_figure_that_is_seen(level, drawn):
    """More than half covered by the figure, and at most half by what stands in front of it."""
    in_front = {'': [], 'bar': ['bar'], 'patch': ['square']}[LEVELS[level].occlusion]
    for index in range(10):
        drawn.clear()
        _, mask, label = draw(LEVELS[level], 61, (5, index))
        figure, *front = drawn[LEVELS[level].clutter :]
        assert figure[0] == SHAPES[label] and [call[0] for call in front] == in_front
        shares = [exact_coverage(*call) for call in (figure, *front)]
        seen = (shares[0] > 0.5) & ~np.any([share > 0.5 for share in shares[1:]], 0)
        unclear = np.any([np.abs(share - 0.5) < 0.1 for share in shares], 0)
        assert unclear.mean() < 0.05
        np.testing.assert_array_equal(mask | unclear, seen | unclear)


def test_each_rung_adds_one_thing():
    assert tuple(LEVELS) == config.LEVELS
    rungs = 'easy', 'rotated', 'textured', 'cluttered', 'occluded'
    added = []
    for names in itertools.pairwise(rungs):
        below, above = (dataclasses.asdict(LEVELS[name]) for name in names)
        added.append({key for key in above if above[key] != below[key]})
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
    drawn = [draw(LEVELS[level], 61, (5, index)) for index in range(count)]
    return [(image.mean(-1) / 255, mask) for image, mask, _ in drawn]


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

    def grey(level):
        grounds = [image[~mask] for image, mask in pictures(level)]
        return np.mean([np.mean((ground > 0.4) & (ground < 0.7)) for ground in grounds])

    assert grey('textured') < 0.01 and grey('cluttered') > 0.03
    behind, figures = [call for i, call in enumerate(drawn[40:]) if i % 5 < 4], drawn[44::5]
    assert len(figures) == 40 and {call[0] for call in behind} == set(SHAPES)
    assert max(call[2] for call in behind) < 0.25 and min(call[2] for call in figures) > 0.5


def test_occluded_hides_a_part_of_the_same_figure():
    for (_, whole), (image, mask) in zip(pictures('cluttered'), pictures('occluded')):
        assert np.all(whole[mask]) and 0.03 < np.mean(~mask[whole]) < 0.5
        assert image[whole & ~mask].mean() < image[mask].mean() - 0.1


def test_hard_is_harder():
    def spread(level):
        source = ShapesSource(40, 23, level, 'train')
        return np.std([source.read(i).image.mean() for i in range(40)])

    assert spread('easy') < spread('medium') < spread('hard')


def test_noise_is_normal():
    numbers = shapes._quantiles().astype(float)
    moments = [np.mean(numbers**k) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.005)


def test_label_maps():
    """The shape of the figure where it is seen, else the eleventh class."""
    settings = config.SegmentDataConfig(
        name='shapes', num_examples=11, num_evaluate_examples=5, image_size=SIZE, level='hard'
    )
    source, plain = open_source(settings, 'train'), ShapesSource(11, SIZE, 'hard', 'train')
    assert source.class_names == (*plain.class_names, 'background')
    assert len(source.class_names) == 11
    for index in range(11):
        (image, label_map), (expected, mask, label) = source.read(index), plain.draw(index)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(label_map == label, mask)
        assert label_map.dtype == np.uint8 and set(np.unique(label_map)) == {label, 10}
    assert len(open_source(settings, 'evaluate')) == 5
    (batch,) = train(source, 1, config=settings, views=VIEWS)
    assert batch['label_map'].shape == (7, SIZE, SIZE)
