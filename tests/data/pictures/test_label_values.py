"""Annotations with values of their own: against a plain look at each pixel."""

import io

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import IGNORED, SegmentDataConfig
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.label_values import Coded, parse
from beit_jax.data.segmentation import count_pixels, whole_example
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import RequestError
from tests.data.pairs import SIZES, encoded, pair, write_pairs

COLORS = ['#804080', '#000000', '#0000ff', '#ff0000', '#fffffe']


def lines(values, names='abcde'):
    return [f'{name}\t{value}' for name, value in zip(names, values)]


@pytest.mark.parametrize('mode', ['bytes', 'words', 'colors', 'palette', 'bits'])
def test_values(mode):
    _, label_map = pair(0, 31, 41, classes=2 if mode == 'bits' else 5)
    given = {
        'bytes': [7, 0, 255, 3, 254],
        'words': [7000, 0, 65535, 3, 256],
        'colors': COLORS,
        'palette': COLORS,
        'bits': [255, 0],
    }[mode]
    names, values = parse(lines(given), 'x')
    if mode == 'palette':
        image = Image.fromarray(label_map)
        image.putpalette(list(b''.join(bytes.fromhex(color[1:]) for color in COLORS)))
        file = io.BytesIO()
        image.save(file, 'PNG')
        file = file.getvalue()
    elif mode == 'colors':
        table = np.array([list(bytes.fromhex(color[1:])) for color in COLORS], np.uint8)
        file = encoded(table[label_map])
    elif mode == 'bits':
        file = encoded(label_map == 0)
    else:
        dtype = np.uint16 if mode == 'words' else np.uint8
        file = encoded(np.array(given, dtype)[label_map])
    assert names == tuple('abcde'[: len(given)])
    for kind in ('PNG', 'TIFF', 'BMP') if mode in ('bytes', 'colors') else ('PNG',):
        if kind != 'PNG':
            file = encoded(np.asarray(Image.open(io.BytesIO(file))), kind)
        found = label_maps.decode(Coded(file, values), 'x', len(names), False)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, label_map)


def test_several_values_of_a_class_and_values_of_none():
    text = ['ground\t0', 'house\t10', 'house\t12', '-\t255', '', '-\t1']
    names, values = parse(text, 'x')
    assert names == ('ground', 'house')
    array = np.array([[0, 10, 12, 255, 1]], np.uint8)
    found = label_maps.decode(Coded(encoded(array), values), 'x', 2, False)
    assert found.tolist() == [[0, 1, 1, IGNORED, IGNORED]]


def test_names_alone_have_no_values():
    assert parse(['wall', '2\tfloor', 'tree 7'], 'x') == (('wall', 'floor', 'tree 7'), None)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (['a\t0', 'b'], 'x: give each class a value'),
        (['a\t0', 'b\t#000000'], 'x: give each class a value'),
        (['a\t0', 'b\t00'], 'x: the value 0 is given twice'),
        (['a\t0', 'b\t70000'], 'x: a value is above 65535'),
    ],
)
def test_bad_lists(text, message):
    with pytest.raises(RequestError, match=message):
        parse(text, 'x')


def test_bad_annotations():
    values, colors = parse(lines([0, 255]), 'x')[1], parse(lines(COLORS), 'x')[1]
    _, label_map = pair(0, 31, 41)
    for file, which, message in (
        (
            encoded(label_map),
            values,
            r'of y has the value \d, which classes.txt does not name: add',
        ),
        (encoded(label_map), colors, 'of y has the value #0[0-9a-f]+, which classes.txt does not'),
        (encoded(pair(0, 31, 41)[0]), values, 'of y is of mode RGB, but classes.txt gives numbers'),
    ):
        with pytest.raises(RequestError, match=message):
            label_maps.decode(Coded(file, which), 'y', 5, False)
    with pytest.raises(RequestError, match='reduce_zero_label is for annotations without values'):
        label_maps.decode(Coded(encoded(0 * label_map), values), 'y', 5, True)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_masks_of_0_and_255(tmp_path, suffix):
    """Of a folder: as the same set with the numbers of the classes."""
    config = SegmentDataConfig(path=write_pairs(tmp_path, suffix=suffix))
    masks = [pair(i, *size)[1] > 2 for i, size in enumerate(SIZES)]
    for i, mask in enumerate(masks):
        Image.fromarray(np.uint8(255) * mask).save(tmp_path / 'annotations' / f'{i}{suffix}')
    (tmp_path / 'classes.txt').write_text('ground\t0\nfigure\t255\n')
    source = open_source(config, 'train')
    assert source.class_names == ('ground', 'figure') and source.annotation(3).endswith(suffix)
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(whole_example(source, i, config)[1], mask)
    looked, pixels = count_pixels(source, config)
    figure = sum(int(mask.sum()) for mask in masks)
    assert looked == len(SIZES) and pixels[1] == figure and pixels[IGNORED] == 0
