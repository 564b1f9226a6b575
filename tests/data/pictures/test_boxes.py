"""Crops are torchvision's: their distribution, and what is left when none fits."""

import math

import numpy as np
import pytest
import scipy.stats

from beit_jax.data.pictures import boxes

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvision_box(rng, height, width):
    """RandomResizedCrop.get_params, as torchvision documents it: (top, left, height, width)."""
    for _ in range(10):
        area = height * width * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('height, width', [(375, 500), (97, 1009)])
def test_random_box_follows_torchvision(height, width):
    """Seven two-sample Kolmogorov-Smirnov tests an image size at 1e-4 each: a false alarm in 500
    new seeds (seeds are fixed, so none)."""
    count, rng = 3000, np.random.default_rng(0)

    def our_box():
        return boxes.random_box(rng.random(boxes.DRAWS), height, width, SCALE, RATIO)

    ours = np.array([our_box() for _ in range(count)])
    theirs = np.array([torchvision_box(rng, height, width) for _ in range(count)])
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()

    def statistics(boxes):
        top, left, h, w = boxes.T
        place = (top / np.maximum(height - h, 1), left / np.maximum(width - w, 1))
        return {
            'top': top,
            'left': left,
            'height': h,
            'width': w,
            'area': h * w,
            'place': place[0] + place[1],
            'skew': place[0] - place[1],
        }

    expected = statistics(theirs)
    for name, values in statistics(ours).items():
        assert scipy.stats.ks_2samp(values, expected[name]).pvalue > 1e-4, name


@pytest.mark.parametrize(
    'height, width, expected',
    [(41, 1009, (0, 477, 41, 55)), (1009, 41, (477, 0, 55, 41)), (53, 59, (0, 0, 53, 59))],
)
def test_random_box_falls_back_to_the_centre(height, width, expected):
    """No box of several times the area fits."""
    assert boxes.random_box(np.full(boxes.DRAWS, 0.5), height, width, (5.0, 6.0), RATIO) == expected


def test_random_box_is_the_first_that_fits():
    draws = np.full(boxes.DRAWS, 0.5)
    draws[:12] = 1, 0, 0, 0, 1, 1, 0, 0, 0, 0.5, 0.999, 0  # too high, too wide, fits
    assert boxes.random_box(draws, 100, 100, (0.09, 1.0), RATIO) == (70, 0, 30, 30)


@pytest.mark.parametrize(
    'shape, size, share, expected',
    [
        ((256, 256), 224, 224 / 256, (16, 16, 224, 224)),
        # resized to 256 x 341, of which rows from 16 and columns from 58 are shown
        (
            (375, 500),
            224,
            224 / 256,
            (16 * 375 / 256, 58 * 500 / 341, 224 * 375 / 256, 224 * 500 / 341),
        ),
        ((331, 199), 67, 1.0, (22 * 331 / 111, 0, 67 * 331 / 111, 199)),
        ((67, 67), 67, 1.0, (0, 0, 67, 67)),
    ],
)
def test_center_box(shape, size, share, expected):
    assert boxes.center_box(*shape, size, share) == pytest.approx(expected, rel=1e-12)


def test_center_boxes_lie_inside():
    """To the last bit, for Pillow refuses what does not; and so do their whole pixels."""
    random = np.random.default_rng(0)
    for height, width, size in random.integers(8, 700, (2000, 3)).tolist():
        box = boxes.center_box(height, width, size, random.choice([0.1, 224 / 256, 0.9, 1.0]))
        top, left, rows, columns = box
        assert min(top, left) >= 0 and top + rows <= height and left + columns <= width
        top, left, rows, columns = boxes.pixel_box(box)
        assert min(rows, columns) > 0 and top + rows <= height and left + columns <= width
