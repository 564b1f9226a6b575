"""Images with label maps: what batches show of the two, whole examples, wrong annotations."""

import dataclasses
import functools
from pathlib import Path
import re
import time

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import IGNORED, SegmentDataConfig
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import center_box, pixel_box
from beit_jax.data.pictures.rand_augment import fill_color
from beit_jax.data.pipeline import check_source, evaluate_batches, segmentation_examples
from beit_jax.data.segmentation import classes_in_words, count_pixels
from beit_jax.data.sources.annotated_folder import AnnotatedFolder
from beit_jax.errors import RequestError
from tests.data import batches
from tests.data.batches import assert_equal, joined
from tests.data.pairs import SIZE, SIZES, VIEWS, Pairs, pair, write_pairs
from tests.data.ways import each_name

CONFIG = SegmentDataConfig(image_size=SIZE, workers=3)
train = functools.partial(batches.train, config=CONFIG, views=VIEWS)


@each_name
def test_the_label_map_follows_the_image(image_ops):
    """The class that a pixel's colour is nearest to is its label, right up to the edges.

    A shift by a pixel shows. What was filled up, below and on the right, has the colour of the mean
    and no class.
    """
    config = dataclasses.replace(CONFIG, image_ops=image_ops)
    padded, wrong, shifted = 0, [], []
    for batch in train(Pairs(classes=2), 6, config=config):
        for image, label_map in zip(batch['image'], batch['label_map']):
            rows, columns = (int((label_map != IGNORED).any(axis).sum()) for axis in (1, 0))
            shown, seen = label_map[:rows, :columns], image[:rows, :columns, 2] > 127
            assert (shown < 2).all() and (label_map != IGNORED).sum() == rows * columns
            assert (image[label_map == IGNORED] == fill_color(config.mean)).all()
            padded += rows < SIZE or columns < SIZE
            wrong.append(np.mean(seen != shown))
            moved = [np.roll(seen, by, axis) for by in (-1, 1) for axis in (0, 1)]
            shifted.append([np.mean((each != shown)[1:-1, 1:-1]) for each in moved])
    assert np.mean(wrong) < 0.003 and np.mean(shifted, 0).min() > 0.03 and 5 < padded < 37


def test_flips():
    turned = 0
    unturned = train(Pairs(), 6, config=dataclasses.replace(CONFIG, flip=False))
    for batch, plain in zip(train(Pairs(), 6), unturned):
        for name in ('image', 'label_map'):
            for ours, other, whole in zip(batch[name], plain[name], plain['label_map'] != IGNORED):
                rows, columns = whole.any(1).sum(), whole.any(0).sum()
                flipped = not np.array_equal(ours, other)
                expected = other[:rows, :columns][:, :: -1 if flipped else 1]
                np.testing.assert_array_equal(ours[:rows, :columns], expected)
                turned += flipped
    assert 20 < turned < 64 and turned % 2 == 0  # image and label map alike, at 1/2


@pytest.fixture
def spoiled(tmp_path):
    """Eleven pairs; the image of one and the annotation of another are damaged."""
    path = write_pairs(tmp_path / 'spoiled', 11)
    for name in ('images/3.jpg', 'annotations/5.png'):
        file = tmp_path / 'spoiled' / name
        file.write_bytes(file.read_bytes()[:-30])
    return AnnotatedFolder(path, 'training')


def number(source, index):
    """The seed of an example, which its name says."""
    return int(Path(source.name(index)).stem)


def test_resumes_and_splits_among_hosts_bit_for_bit(spoiled):
    """Bad records have substitutes, the same each time."""
    rows, one_thread = np.arange(8), dataclasses.replace(CONFIG, workers=1)
    whole = train(spoiled, 6, rows=rows, batch_size=8)
    resumed = train(spoiled, 2, start_step=4, rows=rows, batch_size=8, config=one_thread)
    assert_equal(resumed, whole[4:])
    hosts = [train(spoiled, 6, rows=part, batch_size=8) for part in np.split(rows, 2)]
    assert_equal(joined(hosts), whole)
    bad = [number(spoiled, i) in (3, 5) for i in range(11)]
    for batch in whole:
        assert batch['image'].dtype == batch['label_map'].dtype == np.uint8
        assert batch['image'].shape == (8, SIZE, SIZE, 3)
        assert batch['label_map'].shape == (8, SIZE, SIZE)
        assert batch['label'].dtype == np.int32 and batch['label'].shape == (8,)
        assert not batch['label'].any()
        assert batch['substituted'].tolist() == [bad[i] for i in batch['index']]
        assert not any(bad[i] for i in batch['used'])


def test_whole_examples(spoiled):
    """Each at its own size, in order, shared out among hosts; None for the bad ones."""
    seen = list(segmentation_examples(spoiled, CONFIG, range(11)))
    assert [index for index, *_ in seen] == list(range(11))
    assert sum(image is None for _, image, _ in seen) == 2
    for index, image, label_map in seen:
        seed = number(spoiled, index)
        if seed in (3, 5):
            assert image is label_map is None
            continue
        expected, classes = pair(seed, *SIZES[seed % 7])
        np.testing.assert_array_equal(label_map, classes)
        # a JPEG
        assert image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 10
    hosts = [segmentation_examples(spoiled, CONFIG, range(p, 11, 2)) for p in range(2)]
    for host, images in enumerate(hosts):
        for (index, image, _), (other, expected, _) in zip(images, seen[host::2], strict=True):
            assert index == other and (expected is None or np.array_equal(image, expected))


def test_no_more_whole_examples_are_read_ahead_than_threads_can_use():
    source = Pairs(SIZES * 9)
    source.read = lambda index, read=source.read: asked.append(index) or read(index)
    asked, examples = [], segmentation_examples(source, CONFIG, range(63))
    next(examples)
    time.sleep(0.2)
    assert len(asked) <= 6


def test_central_squares(spoiled):
    """`evaluate_batches` takes label maps too."""
    made = list(evaluate_batches(spoiled, 7, VIEWS, CONFIG, np.arange(7), 1.0))
    assert sum(batch['valid'].sum() for batch in made) == 9
    for batch in made:
        for index, valid, label_map in zip(batch['index'], batch['valid'], batch['label_map']):
            if valid:
                seed = number(spoiled, index)
                _, classes = pair(seed, *SIZES[seed % 7])
                box = pixel_box(center_box(*classes.shape, SIZE, 1.0))
                expected = label_maps.resize(classes, box, (SIZE, SIZE))
                np.testing.assert_array_equal(label_map, expected)


@pytest.mark.parametrize(
    'spoil, words',
    [
        (
            lambda label_map: label_map[:-1],
            r'images/4.jpg has 41 x 43 pixels, its annotation 40 x 43',
        ),
        (
            lambda label_map: label_map + np.uint8(150),
            r'annotation of .*images/4.jpg has the value 15\d, but the 150 classes are 0 to 149',
        ),
    ],
    ids=['size', 'class'],
)
def test_annotations_that_are_wrong(tmp_path, spoil, words):
    """They end whatever meets them: the data set is not what it is taken for."""
    source = AnnotatedFolder(write_pairs(tmp_path, 7), 'training')
    Image.fromarray(spoil(pair(4, *SIZES[4])[1])).save(tmp_path / 'annotations' / '4.png')
    for meets in (
        lambda: train(source, 3),
        lambda: list(segmentation_examples(source, CONFIG, range(7))),
        lambda: check_source(source, CONFIG),
        lambda: list(evaluate_batches(source, 7, VIEWS, CONFIG, np.arange(7))),
    ):
        with pytest.raises(RequestError, match=words) as error:
            meets()
        assert len(str(error.value).splitlines()) <= 2


@pytest.fixture
def masks(tmp_path):
    """Three pictures of 20 x 20 whose lower half is foreground; (path, a function that writes their
    annotations with two values)."""
    path = write_pairs(tmp_path, 3)
    (tmp_path / 'classes.txt').write_text('ground\nfigure\n')

    def write(ground, figure):
        label_map = np.repeat(np.array([ground, figure], np.uint8), 10)[:, None].repeat(20, 1)
        for i in range(3):
            Image.fromarray(label_map).save(tmp_path / 'annotations' / f'{i}.png')

    return path, write


@pytest.mark.parametrize(
    ('values', 'reduce_zero_label', 'words'),
    [
        ((0, 1), False, r'^3 of 3 held-out annotations looked at: 2 of 2 classes, 0\.0% of'),
        (
            (0, 255),
            False,
            r'^WARNING: 3 .*1 of 2 classes \(no pixel of figure\), 50\.0% .*255 is of',
        ),
        (
            (0, 1),
            True,
            r'^WARNING: .*\(no pixel of figure\), 50\.0% .*reduce_zero_label=true .*0 and',
        ),
    ],
)
def test_classes_that_no_annotation_has(values, reduce_zero_label, words, masks):
    path, write = masks
    write(*values)
    config = SegmentDataConfig(path=path, reduce_zero_label=reduce_zero_label)
    line = classes_in_words(AnnotatedFolder(path, 'training'), config, 'held-out')
    assert re.search(words, line)


def test_annotations_of_no_class(masks):
    path, write = masks
    write(0, 255)
    config = SegmentDataConfig(path=path, reduce_zero_label=True)
    with pytest.raises(
        RequestError, match=r'all pixels of the 3 training .*reduce_zero_label=true'
    ):
        classes_in_words(AnnotatedFolder(path, 'training'), config, 'training')


def test_pixels_of_each_class():
    """Against the maps themselves; of 7 the first, the middle one and the last."""
    maps = [pair(i, *size)[1].ravel() for i, size in enumerate(SIZES)]
    for limit, looked in ((0, maps), (3, maps[::3])):
        count, pixels = count_pixels(Pairs(), CONFIG, limit)
        assert count == len(looked)
        expected = np.bincount(np.concatenate(looked), minlength=256)
        np.testing.assert_array_equal(pixels, expected)
