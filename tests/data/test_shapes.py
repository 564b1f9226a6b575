"""The built-in pictures: the same everywhere, labelled rightly, masks exact, levels harder."""
import hashlib

import numpy as np
import pytest
from skimage.draw import polygon2mask
from skimage.measure import label as components

from beit_jax.data import shapes
from beit_jax.data.shapes import SHAPES, ShapesSource, signed_distance


@pytest.mark.parametrize(('level', 'digest'), [('easy', 'b34991b5cbf1'), ('medium', 'cc3086732600'), ('hard', '00f926dab36e')])
def test_golden(level, digest):
    """A change of a picture changes every result on `shapes`: make it knowingly."""
    source = ShapesSource(100, 37, level, 'train')
    pictures = np.stack([source.read(index).image for index in range(20)])
    # a coarse digest: float rounding may differ by a grey level between machines
    assert hashlib.sha256((pictures.astype(int).sum((1, 2, 3)) // 3000).tobytes()).hexdigest()[:12] == digest


def test_an_example_depends_on_its_index_and_split_alone():
    short, long = ShapesSource(10, 23, 'easy', 'train'), ShapesSource(1000, 23, 'easy', 'train')
    np.testing.assert_array_equal(short.read(7).image, long.read(7).image)
    assert short.fingerprint != long.fingerprint
    assert np.any(short.read(7).image != ShapesSource(10, 23, 'easy', 'evaluate').read(7).image)


def test_labels_are_even():
    counts = np.bincount([ShapesSource(3000, 8, 'easy', 'train').read(i).label for i in range(3000)], minlength=10)
    assert counts.sum() == 3000 and counts.min() > 220 and counts.max() < 380  # 5 standard deviations


@pytest.mark.parametrize('shape', sorted(shapes._POLYGONS))
def test_distance_to_a_polygon(shape):
    """Inside is negative, as scikit-image fills the polygon; the distance changes by at most the step."""
    size = 101
    centres = (np.arange(size) + 0.5) * (2.4 / size) - 1.2
    x, y = np.meshgrid(centres, centres, indexing='xy')
    distance = signed_distance(shape, x.astype(np.float32), y.astype(np.float32))
    corners = (np.asarray(shapes._POLYGONS[shape]) + 1.2) * size / 2.4 - 0.5
    filled = polygon2mask((size, size), corners[:, ::-1])
    disagree = (distance < 0) != filled
    assert disagree.mean() < 0.01 and np.abs(distance[disagree]).max(initial=0) < 2.4 / size
    assert np.abs(np.diff(distance, axis=0)).max() <= 2.4 / size * 1.01


def test_mask_is_the_bright_figure():
    """On the easy level the figure is far brighter than the ground, so that a threshold finds the mask."""
    source = ShapesSource(50, 61, 'easy', 'train')
    for index in range(50):
        image, mask, label = source.draw(index)
        assert np.mean((image.mean(-1) > 115) != mask) < 0.01
        assert components(mask, connectivity=2).max() in (1, 2) if SHAPES[label] == 'hourglass' else components(mask).max() == 1


def test_hard_is_harder():
    spread = {level: np.std([ShapesSource(40, 23, level, 'train').read(i).image.mean() for i in range(40)]) for level in shapes.LEVELS}
    assert spread['easy'] < spread['medium'] < spread['hard']
