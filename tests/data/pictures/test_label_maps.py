"""Images with label maps: what a training view shows of the two, sources, whole examples, and data
sets that are wrong."""

import dataclasses
import io
import itertools
from pathlib import Path
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from beit_jax.data.config import IGNORED, SegmentDataConfig, View
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import BadImageError
from beit_jax.data.pictures.rand_augment import fill_color
from beit_jax.data.pipeline import (
    check_source,
    evaluate_batches,
    segmentation_examples,
    train_batches,
)
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.annotated_folder import AnnotatedFolder
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.data.sources.source import Example
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import from_mapping

SIZE = 67
VIEWS = (View('image', SIZE), View('label_map', SIZE, 'nearest'))
CONFIG = SegmentDataConfig(image_size=SIZE, workers=3)


def encoded(array, kind='PNG', mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def pair(seed, height, width, classes=5):
    """A label map of rectangles and an image whose colour is the class."""
    rng = np.random.default_rng(seed)
    rows, columns = (
        np.repeat(np.arange(side), rng.integers(5, 17, side))[:side] for side in (height, width)
    )
    label_map = rng.integers(0, classes, [height, width])[rows][:, columns].astype(np.uint8)
    return np.stack([label_map * 50, 255 - label_map * 50, label_map % 2 * 255], -1).astype(
        np.uint8
    ), label_map


SIZES = [(83, 131), (127, 61), (97, 101), (61, 307), (41, 43), (149, 113), (53, 79)]


def write(root, count=7, part='', suffix='.png', offset=0):
    """A folder pair of `pair`s; returns its path."""
    for i in range(count):
        image, label_map = pair(i, *SIZES[i % len(SIZES)])
        for kind, name, array in (
            ('images', f'{i}.jpg', image),
            ('annotations', f'{i}{suffix}', label_map + np.uint8(offset)),
        ):
            path = root / kind / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(
                path, **({'quality': 98, 'subsampling': 0} if kind == 'images' else {})
            )
    return str(root)


def train(source, count, config=CONFIG, rows=np.arange(7), batch_size=7, start_step=0, views=VIEWS):
    return list(
        itertools.islice(
            train_batches(
                source, Sampler(len(source), batch_size, 5), views, config, rows, start_step
            ),
            count,
        )
    )


class Pairs:
    """`pair`s that come decoded."""

    class_names = tuple('abcde')

    def __init__(self, sizes=SIZES, classes=5):
        self.sizes, self.classes = sizes, classes

    def __len__(self):
        return len(self.sizes)

    def name(self, index):
        return f'pair {index}'

    def read(self, index):
        return Example(*pair(index, *self.sizes[index], self.classes))


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
    expected = Image.fromarray(label_map).resize(
        shape[::-1], Image.NEAREST, box=(left, top, left + width, top + height)
    )
    np.testing.assert_array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize(
    'height, width', [(512, 683), (97, 101), (31, 59), (3000, 200), (200, 3000), (8, 8)]
)
def test_window_is_that_of_the_resized_image(height, width):
    """mmsegmentation: resize by min(4 S ratio / longer side, S ratio / shorter side), cut out S x S
    or what there is, anywhere."""
    rng, places = np.random.default_rng(0), []
    label_map = np.zeros([height, width], np.uint8)
    for ratio in rng.uniform(0.5, 2.0, 300):
        draws = [(ratio - 0.5) / 1.5, *rng.random(2 * label_maps.ATTEMPTS)]
        (top, left, rows, columns), classes = label_maps.random_window(
            draws, label_map, SIZE, (0.5, 2.0)
        )
        factor = min(4 * SIZE * ratio / max(height, width), SIZE * ratio / min(height, width))
        for shown, side, whole in zip(classes.shape, (rows, columns), (height, width)):
            assert abs(shown - min(SIZE, whole * factor)) <= 1
            assert side == whole if whole * factor <= SIZE else abs(side - SIZE / factor) <= 0.5
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
        places.append(
            (
                top / max(1, height - rows),
                left / max(1, width - columns),
                rows == height,
                columns == width,
            )
        )
    for place, whole in ((0, 2), (1, 3)):
        free = np.array([each[place] for each in places if not each[whole]])
        assert not len(free) or (free.max() > 0.9 and abs(free.mean() - 0.5) < 0.1)


@pytest.mark.parametrize('kind', ['halves', 'ignored', 'one', 'none'])
def test_no_class_has_more_than_three_quarters(kind):
    """The first of ten windows in which that holds, else the tenth, by a plain look at what each
    shows."""
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
        box, classes = label_maps.random_window(draws, label_map, SIZE, (2.0, 2.0))
        side = 106  # half the shorter side, rounded
        for attempt in range(10):
            top, left = (
                int(draws[1 + 2 * attempt] * (212 - side)),
                int(draws[2 + 2 * attempt] * (308 - side)),
            )
            rows, columns = (
                [start + int((i + 0.5) * side / SIZE) for i in range(SIZE)] for start in (top, left)
            )
            shown = label_map[np.repeat(rows, SIZE), np.tile(columns, SIZE)]
            counts = np.unique(shown[shown != IGNORED], return_counts=True)[1]
            if len(counts) > 1 and counts.max() / counts.sum() <= 0.75:
                break
        assert box == (top, left, side, side)
        np.testing.assert_array_equal(classes.ravel(), shown)
        taken.append(attempt)
    assert set(taken) == {9} if kind in ('one', 'none') else len(set(taken)) > 4


@pytest.mark.parametrize('image_ops', ['simd', 'tensorflow'])
def test_the_label_map_follows_the_image(image_ops):
    """The class that a pixel's colour is nearest to is its label, right up to the edges: a shift by
    a pixel shows. What was filled up has the colour of the mean and no class, below and on the
    right."""
    config, padded, wrong, shifted = dataclasses.replace(CONFIG, image_ops=image_ops), 0, [], []
    for batch in train(Pairs(classes=2), 6, config):
        for image, label_map in zip(batch['image'], batch['label_map']):
            rows, columns = (int((label_map != IGNORED).any(axis).sum()) for axis in (1, 0))
            shown, seen = label_map[:rows, :columns], image[:rows, :columns, 2] > 127
            assert (shown < 2).all() and (label_map != IGNORED).sum() == rows * columns
            assert (image[label_map == IGNORED] == fill_color(config.mean)).all()
            padded += rows < SIZE or columns < SIZE
            wrong.append(np.mean(seen != shown))
            shifted.append(
                [
                    np.mean(np.roll(seen, by, axis)[1:-1, 1:-1] != shown[1:-1, 1:-1])
                    for by in (-1, 1)
                    for axis in (0, 1)
                ]
            )
    assert np.mean(wrong) < 0.003 and np.mean(shifted, 0).min() > 0.03 and 5 < padded < 37


def test_flips():
    turned = 0
    for batch, plain in zip(
        train(Pairs(), 6), train(Pairs(), 6, dataclasses.replace(CONFIG, flip=False))
    ):
        for name in ('image', 'label_map'):
            for ours, other, whole in zip(batch[name], plain[name], plain['label_map'] != IGNORED):
                rows, columns = whole.any(1).sum(), whole.any(0).sum()
                flipped = not np.array_equal(ours, other)
                np.testing.assert_array_equal(
                    ours[:rows, :columns], other[:rows, :columns][:, :: -1 if flipped else 1]
                )
                turned += flipped
    assert 20 < turned < 64 and turned % 2 == 0  # image and label map alike, at 1/2


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture
def spoiled(tmp_path):
    """Eleven pairs; the image of one and the annotation of another are damaged."""
    path = write(tmp_path / 'spoiled', 11)
    for name in ('images/3.jpg', 'annotations/5.png'):
        file = tmp_path / 'spoiled' / name
        file.write_bytes(file.read_bytes()[:-30])
    return AnnotatedFolder(path, 'training')


def test_resumes_and_splits_among_hosts_bit_for_bit(spoiled):
    """Bad records have substitutes, the same each time."""
    whole = train(spoiled, 6, rows=np.arange(8), batch_size=8)
    assert_equal(
        train(
            spoiled,
            2,
            rows=np.arange(8),
            batch_size=8,
            start_step=4,
            config=dataclasses.replace(CONFIG, workers=1),
        ),
        whole[4:],
    )
    parts = [train(spoiled, 6, rows=rows, batch_size=8) for rows in np.split(np.arange(8), 2)]
    assert_equal(
        [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts)
        ],
        whole,
    )
    bad = [spoiled.name(i).endswith(('3.jpg', '5.jpg')) for i in range(11)]
    for batch in whole:
        assert {
            name: (batch[name].dtype, batch[name].shape) for name in ('image', 'label_map', 'label')
        } == {
            'image': (np.uint8, (8, SIZE, SIZE, 3)),
            'label_map': (np.uint8, (8, SIZE, SIZE)),
            'label': (np.int32, (8,)),
        }
        assert not batch['label'].any() and batch['substituted'].tolist() == [
            bad[i] for i in batch['index']
        ]
        assert not any(bad[i] for i in batch['used'])


def test_whole_examples(spoiled):
    """Each at its own size, in order, shared out among hosts; None for the bad ones; no more are
    read ahead than threads can use."""
    seen = list(segmentation_examples(spoiled, CONFIG, range(11)))
    assert [index for index, *_ in seen] == list(range(11)) and sum(
        image is None for _, image, _ in seen
    ) == 2
    for index, image, label_map in seen:
        number = int(Path(spoiled.name(index)).stem)
        if number in (3, 5):
            assert image is label_map is None
            continue
        expected, classes = pair(number, *SIZES[number % 7])
        np.testing.assert_array_equal(label_map, classes)
        # a JPEG
        assert image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 10
    hosts = [segmentation_examples(spoiled, CONFIG, range(p, 11, 2)) for p in range(2)]
    for host, images in enumerate(hosts):
        for (index, image, _), (other, expected, _) in zip(images, seen[host::2], strict=True):
            assert index == other and (expected is None or np.array_equal(image, expected))
    source = Pairs(SIZES * 9)
    source.read = lambda index, read=source.read: asked.append(index) or read(index)
    asked, examples = [], segmentation_examples(source, CONFIG, range(63))
    next(examples)
    time.sleep(0.2)
    assert len(asked) <= 6


def test_central_squares(spoiled):
    """`evaluate_batches` takes label maps too."""
    batches = list(evaluate_batches(spoiled, 7, VIEWS, CONFIG, np.arange(7), 1.0))
    assert sum(batch['valid'].sum() for batch in batches) == 9
    for batch in batches:
        for index, valid, label_map in zip(batch['index'], batch['valid'], batch['label_map']):
            if valid:
                classes = pair(number := int(Path(spoiled.name(index)).stem), *SIZES[number % 7])[1]
                side = min(classes.shape)
                box = ((classes.shape[0] - side) // 2, (classes.shape[1] - side) // 2, side, side)
                np.testing.assert_array_equal(
                    label_map, label_maps.resize(classes, box, (SIZE, SIZE))
                )


def test_reduce_zero_label():
    values = np.arange(256, dtype=np.uint8).reshape(2, 128)
    assert label_maps.decode(values, 'x', 254, True).ravel().tolist() == [255, *range(254), 255]
    assert label_maps.decode(values, 'x', 255, False).ravel().tolist() == list(range(256))
    assert label_maps.decode(encoded(values), 'x', 254, True).ravel().tolist() == [
        255,
        *range(254),
        255,
    ]


def test_kinds_of_png():
    label_map = pair(0, 31, 41)[1]
    palette = Image.fromarray(label_map)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    file = io.BytesIO()
    palette.save(file, 'PNG')
    for png in (encoded(label_map), file.getvalue(), encoded(label_map, mode='RGB')):
        np.testing.assert_array_equal(label_maps.decode(png, 'x', 5, False), label_map)
    np.testing.assert_array_equal(
        label_maps.decode(encoded(label_map > 2), 'x', 5, False), label_map > 2
    )
    for png in (encoded(pair(0, 31, 41)[0]), encoded(label_map.astype(np.uint16))):
        with pytest.raises(
            RequestError, match=r'the annotation of x is a PNG of mode .* grey or palette'
        ):
            label_maps.decode(png, 'x', 5, False)
    whole = encoded(np.random.default_rng(0).integers(0, 5, [31, 41], np.uint8))
    # of the first chunk and of the second
    lengths = whole[:11] + b'\5' + whole[12:], whole[:35] + b'\1' + whole[36:]
    for bad in (
        b'',
        b'text',
        whole[: len(whole) // 2],
        whole[:60] + b'x' + whole[61:],
        *lengths,
        encoded(label_map, 'JPEG'),
    ):
        with pytest.raises(BadImageError, match='annotation'):
            label_maps.decode(bad, 'x', 5, False)


def test_folders(tmp_path):
    """The official layout, a flat one of which a share is held out, one with another folder to
    evaluate on; and the classes."""
    official = write(tmp_path / 'official', 7, 'training')
    write(tmp_path / 'official', 3, 'validation')
    (tmp_path / 'official' / 'annotations' / 'training' / 'more.png').write_bytes(b'')  # nobody's
    flat, other = write(tmp_path / 'flat', 6), write(tmp_path / 'other', 2)
    (tmp_path / 'other' / 'classes.txt').write_text('no\n')
    for settings, counts in (
        ({'path': official}, (7, 3)),
        ({'path': official, 'evaluate_path': other}, (7, 2)),
        ({'path': flat, 'holdout': 0.3}, (4, 2)),
        ({'path': flat, 'evaluate_path': official}, (6, 3)),
    ):
        config = from_mapping(SegmentDataConfig, settings)
        train, evaluate = open_source(config, 'train'), open_source(config, 'evaluate')
        assert (
            len(train),
            len(evaluate),
        ) == counts and train.class_names == evaluate.class_names == tuple(map(str, range(1, 151)))
        check_source(train, config)
    assert open_source(SegmentDataConfig(path=flat), 'evaluate') is None
    image, label = train.read(2)
    assert (
        Path(train.name(2)).read_bytes() == image
        and Path(train.name(2).replace('images', 'annotations')[:-3] + 'png').read_bytes() == label
    )
    before = train.fingerprint
    (tmp_path / 'flat' / 'annotations' / '1.png').write_bytes(b'other')
    assert AnnotatedFolder(flat, 'training').fingerprint != before
    table = [
        ('Idx', 'Ratio', 'Train', 'Val', 'Stuff', 'Name'),
        ('1', '0.1', '7', '7', '1', 'wall'),
        ('2', '0.1', '5', '3', '0', 'tree, oak'),
    ]
    (tmp_path / 'flat' / 'objectInfo150.txt').write_text('\n'.join(map('\t'.join, table)))
    assert AnnotatedFolder(flat, 'training').class_names == ('wall', 'tree, oak')
    (tmp_path / 'flat' / 'classes.txt').write_text('a b\nc\n\n')
    assert AnnotatedFolder(flat, 'training').class_names == ('a b', 'c')
    (tmp_path / 'flat' / 'classes.txt').write_text('c\n' * 256)
    with pytest.raises(RequestError, match=r'classes.txt has 256 classes'):
        AnnotatedFolder(flat, 'training')


def test_folders_that_are_no_pairs(tmp_path):
    path = write(tmp_path / 'set', 5)
    (tmp_path / 'set' / 'annotations' / '3.png').unlink()
    with pytest.raises(
        RequestError,
        match=r'1 of 5 images have no annotation; the first is .*set/images/3.jpg, .*set/annotations/3.png',
    ):
        open_source(SegmentDataConfig(path=path), 'train')
    write(tmp_path / 'jpegs', 2, suffix='.jpg')
    for wrong, words in (
        ('', 'config.data.path is empty'),
        (str(tmp_path), "holds no folder 'images'"),
        (str(tmp_path / 'jpegs'), '2 of 2 images have no annotation'),
        (write(tmp_path / 'half', 2, 'validation'), 'images/validation, but no images/training'),
    ):
        with pytest.raises(RequestError, match=words):
            open_source(SegmentDataConfig(path=wrong), 'train')
    with pytest.raises(RequestError, match=r'config.data.evaluate_path=.* holds no folder'):
        open_source(
            SegmentDataConfig(path=write(tmp_path / 'good', 2), evaluate_path=str(tmp_path)),
            'evaluate',
        )
    for settings, words in (
        ({'segment_scale': (2.0, 1.0)}, 'segment_scale is'),
        ({'labels_per_class': 3}, 'labels_per_class is for'),
    ):
        with pytest.raises(RequestError, match=words):
            SegmentDataConfig(**settings)


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
    """They end whatever meets them: a data set of which one is wrong is not what it is taken
    for."""
    source = AnnotatedFolder(write(tmp_path, 7), 'training')
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


def test_shapes():
    config = SegmentDataConfig(
        name='shapes', num_examples=11, num_evaluate_examples=5, image_size=SIZE, level='hard'
    )
    source, plain = open_source(config, 'train'), ShapesSource(11, SIZE, 'hard', 'train')
    assert (
        len(source.class_names) == 11
        and source.class_names[:10] == plain.class_names
        and source.class_names[10] == 'background'
    )
    for index in range(11):
        (image, label_map), (expected, mask, label) = source.read(index), plain.draw(index)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(label_map == label, mask)
        assert label_map.dtype == np.uint8 and set(np.unique(label_map)) == {label, 10}
    assert len(open_source(config, 'evaluate')) == 5 and train(source, 1, config)[0][
        'label_map'
    ].shape == (7, SIZE, SIZE)


class _Scenes(tfds.core.GeneratorBasedBuilder):
    """As scene_parse150: JPEG files and grey PNG files, which TFDS copies."""

    __module__ = 'scenes'  # see test_tfrecords.py
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, path, names=('image', 'annotation'), **kwargs):
        self.path, self.names = path, names
        super().__init__(**kwargs)

    def _info(self):
        forms = {
            name: tfds.features.Image(encoding_format=form)
            for name, form in zip(self.names, ('jpeg', 'png', 'png'))
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(forms))

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(count) for split, count in (('train', 6), ('test', 3))
        }

    def _generate_examples(self, count):
        for i in range(count):
            files = [f'{self.path}/images/{i}.jpg', *[f'{self.path}/annotations/{i}.png'] * 2]
            yield i, dict(zip(self.names, files))


def prepare(path, folder, **kwargs):
    builder = _Scenes(data_dir=path, path=folder, **kwargs)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(verify_ssl=False))
    return str(builder.data_path)


def test_tfds_records(tmp_path):
    folder = write(tmp_path / 'folder', 6, offset=1)
    path = prepare(tmp_path / 'records', folder)
    config = SegmentDataConfig(
        name='tfds', path=path, evaluate_split='test', reduce_zero_label=True
    )
    source = open_source(config, 'train')
    assert (len(source), len(open_source(config, 'evaluate')), len(source.class_names)) == (
        6,
        3,
        150,
    )
    files = {(tmp_path / 'folder' / 'images' / f'{i}.jpg').read_bytes(): i for i in range(6)}
    for index, example in enumerate(source.read_many(0, 6)):
        number = files.pop(example.image)
        assert example.label == (
            tmp_path / 'folder' / 'annotations' / f'{number}.png'
        ).read_bytes() and example == source.read(index)
        ((_, _, label_map),) = segmentation_examples(source, config, [index])
        np.testing.assert_array_equal(label_map, pair(number, *SIZES[number])[1])
    (Path(path) / 'classes.txt').write_text('a\nb\n')
    with pytest.raises(
        RequestError,
        match=r'train.tfrecord.* has the value [345], but the 2 classes are 1 to 2 \(0 and 255: ignored\)',
    ):
        train(open_source(config, 'train'), 1, config)
    for names, words in (
        (('image',), '0 label maps'),
        (('image', 'mask'), '0 label maps'),
        (('image', 'annotation', 'depth'), '2 image features'),
        (('image', 'annotation', 'segmentation_mask'), '2 label maps'),
    ):
        with pytest.raises(RequestError, match=words):
            open_source(
                dataclasses.replace(
                    config, path=prepare(tmp_path / '-'.join(names), folder, names=names)
                ),
                'train',
            )
