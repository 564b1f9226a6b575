"""What a training view shows of a label map, and the PNG files that are one."""

import io

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import IGNORED
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import BadImageError
from beit_jax.errors import RequestError
from tests.data.pairs import SIZE, encoded, pair


@pytest.mark.parametrize(
    'box, shape',
    [
        ((3, 5, 61, 83), (97, 41)),
        ((0, 0, 101, 103), (211, 211)),
        ((7, 0, 13, 97), (13, 97)),
        ((9, 9, 1, 1), (3, 5)),
    ],
)
def test_resize_takes_the_nearest(box, shape):
    label_map = np.random.default_rng(0).integers(0, 256, [101, 103], np.uint8)
    top, left, height, width = box
    ours = label_maps.resize(label_map, box, shape)
    edges = left, top, left + width, top + height
    expected = Image.fromarray(label_map).resize(shape[::-1], Image.NEAREST, box=edges)
    np.testing.assert_array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize(
    'height, width', [(512, 683), (97, 101), (31, 59), (3000, 200), (200, 3000), (8, 8)]
)
def test_window_is_that_of_the_resized_image(height, width):
    """mmsegmentation: resize by min(4 S ratio / longer side, S ratio / shorter side), cut out S x S
    or what there is, anywhere."""
    rng, tops, lefts = np.random.default_rng(0), [], []
    label_map = np.zeros([height, width], np.uint8)
    for ratio in rng.uniform(0.5, 2.0, 300):
        draws = [(ratio - 0.5) / 1.5, *rng.random(2 * label_maps.ATTEMPTS)]
        (top, left, rows, columns), classes = label_maps.random_window(
            draws, label_map, (SIZE, SIZE), (0.5, 2.0)
        )
        factor = min(4 * SIZE * ratio / max(height, width), SIZE * ratio / min(height, width))
        for shown, side, whole in zip(classes.shape, (rows, columns), (height, width)):
            assert abs(shown - min(SIZE, whole * factor)) <= 1
            assert side == whole if whole * factor <= SIZE else abs(side - SIZE / factor) <= 0.5
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
        if rows < height:
            tops.append(top / (height - rows))
        if columns < width:
            lefts.append(left / (width - columns))
    for places in (tops, lefts):
        assert not places or (max(places) > 0.9 and abs(np.mean(places) - 0.5) < 0.1)


@pytest.mark.parametrize('whole', [(512, 683), (683, 512), (97, 401), (3000, 200)])
@pytest.mark.parametrize('size', [(64, 96), (96, 64)])
def test_window_of_a_rectangle(whole, size):
    """Of the image resized to just cover it, times the ratio, but at most four times as long."""
    rng, label_map = np.random.default_rng(0), np.zeros(whole, np.uint8)
    for ratio in rng.uniform(0.5, 2.0, 100):
        draws = [(ratio - 0.5) / 1.5, *rng.random(2 * label_maps.ATTEMPTS)]
        (_, _, *sides), classes = label_maps.random_window(draws, label_map, size, (0.5, 2.0))
        covers = max(new / side for new, side in zip(size, whole))
        factor = ratio * min(covers, 4 * max(size) / max(whole))
        for shown, side, there, new in zip(classes.shape, sides, whole, size):
            assert abs(shown - min(new, there * factor)) <= 1
            assert side == there if there * factor <= new else abs(side - new / factor) <= 0.5


@pytest.mark.parametrize('kind', ['halves', 'ignored', 'one', 'none'])
def test_no_class_has_more_than_three_quarters(kind):
    """The first of ten windows in which that holds, else the tenth, by a plain look at each."""
    label_map = np.full([211, 307], 3, np.uint8)
    if kind in ('halves', 'ignored'):
        label_map[:, 160:] = 7
    if kind == 'ignored':
        label_map[:170] = IGNORED
    if kind == 'none':
        label_map[:] = IGNORED
    taken = []
    for seed in range(100):
        draws = np.random.default_rng(seed).random(21)
        box, classes = label_maps.random_window(draws, label_map, (SIZE, SIZE), (2.0, 2.0))
        side = 106  # half the shorter side, rounded
        centres = np.array([int((i + 0.5) * side / SIZE) for i in range(SIZE)])
        for attempt in range(10):
            top = int(draws[1 + 2 * attempt] * (212 - side))
            left = int(draws[2 + 2 * attempt] * (308 - side))
            shown = label_map[top + centres][:, left + centres]
            counts = np.unique(shown[shown != IGNORED], return_counts=True)[1]
            if len(counts) > 1 and counts.max() / counts.sum() <= 0.75:
                break
        assert box == (top, left, side, side)
        np.testing.assert_array_equal(classes, shown)
        taken.append(attempt)
    assert set(taken) == {9} if kind in ('one', 'none') else len(set(taken)) > 4


def test_reduce_zero_label():
    values = np.arange(256, dtype=np.uint8).reshape(2, 128)
    reduced = [255, *range(254), 255]
    assert label_maps.decode(values, 'x', 254, True).ravel().tolist() == reduced
    assert label_maps.decode(values, 'x', 255, False).ravel().tolist() == list(range(256))
    assert label_maps.decode(encoded(values), 'x', 254, True).ravel().tolist() == reduced


def test_kinds_of_png():
    image, label_map = pair(0, 31, 41)
    palette = Image.fromarray(label_map)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    file = io.BytesIO()
    palette.save(file, 'PNG')
    for png in (encoded(label_map), file.getvalue(), encoded(label_map, mode='RGB')):
        np.testing.assert_array_equal(label_maps.decode(png, 'x', 5, False), label_map)
    bits = label_maps.decode(encoded(label_map > 2), 'x', 5, False)
    np.testing.assert_array_equal(bits, label_map > 2)
    words = r'the annotation of x is a picture of mode .* grey or palette'
    for png in (encoded(image), encoded(label_map.astype(np.uint16))):
        with pytest.raises(RequestError, match=words):
            label_maps.decode(png, 'x', 5, False)


def test_damaged_png():
    whole = encoded(np.random.default_rng(0).integers(0, 5, [31, 41], np.uint8))
    for bad in (
        b'',
        b'text',
        whole[: len(whole) // 2],
        whole[:60] + b'x' + whole[61:],
        whole[:11] + b'\5' + whole[12:],  # the length of the first chunk
        whole[:35] + b'\1' + whole[36:],  # and of the second
        encoded(pair(0, 31, 41)[1], 'JPEG'),
    ):
        with pytest.raises(BadImageError, match='annotation'):
            label_maps.decode(bad, 'x', 5, False)
