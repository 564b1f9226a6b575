import dataclasses
import functools
import itertools
import shutil
import sys

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import DataConfig, View
from beit_jax.data.pictures import decode_simd
from beit_jax.data.pictures.boxes import DRAWS, center_box, random_box
from beit_jax.data.pictures.rand_augment import parse_policy, rand_augment
from beit_jax.data.pipeline import check_source, evaluate_batches, train_batches
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.data.sources.source import Example
from beit_jax.errors import RequestError
from tests.photos import write_photos

VIEWS = (View('image', 67, 'bicubic'), View('tokens', 31, 'lanczos3'))
CONFIG = DataConfig(workers=3)
ROWS = np.arange(7)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp('good')
    for i, photo in enumerate(write_photos(path / 'all')):
        (path / f'{i % 2}').mkdir(exist_ok=True)
        shutil.move(photo, path / f'{i % 2}' / photo.name)
    (path / 'all').rmdir()
    return FolderSource(str(path))


@pytest.fixture
def spoiled(good, tmp_path):
    """The good folder, with four of eleven files bad."""
    path = tmp_path / 'spoiled'
    shutil.copytree(good.path, path)
    jpeg = (path / '0' / good.name(0).rpartition('/')[2]).read_bytes()
    (path / '0' / 'x_truncated.jpg').write_bytes(jpeg[: int(0.9 * len(jpeg))])
    (path / '1' / 'x_text.jpg').write_text('not a picture')
    (path / '1' / 'y_empty.png').write_bytes(b'')
    Image.new('RGB', (1, 1)).save(path / '1' / 'z_pixel.png')
    return FolderSource(str(path))


def bad_indices(source):
    return {i for i in range(len(source)) if source.name(i).rpartition('/')[2][0] in 'xyz'}


def train(
    source,
    count,
    start_step=0,
    rows=ROWS,
    batch_size=7,
    seed=5,
    config=CONFIG,
    views=VIEWS,
    repeat_views=0,
):
    batches = train_batches(
        source,
        Sampler(len(source), batch_size, seed, repeat_views=repeat_views),
        views,
        config,
        rows,
        start_step,
    )
    return list(itertools.islice(batches, count))


def assert_equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_have_the_promised_form(good):
    for step, batch in enumerate(train(good, 3)):
        forms = {key: (value.dtype, value.shape) for key, value in batch.items()}
        assert forms == {
            'image': (np.uint8, (7, 67, 67, 3)),
            'tokens': (np.uint8, (7, 31, 31, 3)),
            'label': (np.int32, (7,)),
            'index': (np.int64, (7,)),
            'view': (np.uint32, (7,)),
            'substituted': (bool, (7,)),
            'used': (np.int64, (7,)),
            'valid': (np.float32, (7,)),
        }
        sampler = Sampler(len(good), 7, 5)
        np.testing.assert_array_equal(
            batch['index'], sampler.examples(sampler.positions(step, ROWS))
        )
        assert batch['label'].tolist() == [good.read(i).label for i in batch['index']]
        assert batch['valid'].tolist() == [1] * 7 and not batch['substituted'].any()


def test_pixels_follow_from_seed_and_position_alone(good):
    """Made again outside tf.data, one by one; a flip is at 1/2: 84 draws lie within 27 .. 57 but
    for one seed in 1000."""
    flips = 0
    for step, batch in enumerate(train(good, 12)):
        for row, index in enumerate(batch['index']):
            flip, *draws = uniform(5, 7 * step + row, 1 + DRAWS)
            flips += flip < 0.5
            crop = decode_simd.decode_crop(
                good.read(index).image,
                functools.partial(
                    random_box, draws, scale=CONFIG.crop_scale, ratio=CONFIG.crop_ratio
                ),
            )
            # one crop and one flip for both views
            for view, expected in zip(VIEWS, decode_simd.resize(crop, VIEWS)):
                np.testing.assert_array_equal(
                    batch[view.name][row], expected[:, :: -1 if flip < 0.5 else 1]
                )
    assert 27 <= flips <= 57


def uniform(seed, number, count):
    """What is drawn for a view, float64 [count]."""
    bits = np.random.Philox(
        key=np.uint64([seed, number]), counter=np.uint64([0, 0, 0, 2])
    ).random_raw(count)
    return [int(each) / 2**64 // 2**-53 * 2**-53 for each in bits]


def test_without_the_quick_libraries(good, monkeypatch):
    """The same crops and flips, and pixels that differ by a rounding."""
    config = dataclasses.replace(CONFIG, image_ops='tensorflow')
    for quick, slow in zip(train(good, 2), train(good, 2, config=config), strict=True):
        for view in VIEWS:
            assert np.abs(quick[view.name].astype(int) - slow[view.name]).mean() < 0.5
    monkeypatch.setitem(sys.modules, 'simplejpeg', None)
    monkeypatch.delitem(sys.modules, 'beit_jax.data.pictures.decode_simd')
    monkeypatch.delattr('beit_jax.data.pictures.decode_simd')
    with pytest.raises(RequestError, match=r'simplejpeg.*config.data.image_ops=tensorflow'):
        train(good, 1)
    train(good, 1, config=config)


def test_resumes_bit_for_bit(spoiled):
    whole = train(spoiled, 9)
    for start in (1, 4, 8):
        assert_equal(train(spoiled, 9 - start, start), whole[start:])
    assert_equal(
        train(spoiled, 9, config=dataclasses.replace(CONFIG, workers=1, prefetch=1)), whole
    )
    assert not np.array_equal(train(spoiled, 1, seed=6)[0]['image'], whole[0]['image'])


def test_resumes_past_32_bits(good):
    step = 2**40
    assert_equal(train(good, 1, step + 1), train(good, 2, step)[1:])
    assert not np.array_equal(
        train(good, 1, step)[0]['image'], train(good, 1, step + 2**32)[0]['image']
    )


def test_views_repeat(spoiled):
    """Twelve images, views that come again every two epochs: four epochs hold two pictures of each,
    those of bad ones included."""
    for repeat_views, count in ((2, 2), (0, 4)):
        pictures = {}
        for batch in train(spoiled, 7, repeat_views=repeat_views):
            for view, index, image in zip(batch['view'], batch['index'], batch['image']):
                pictures.setdefault(int(index), []).append((int(view), image.tobytes()))
        assert len(pictures) == 12
        for seen in pictures.values():
            assert (
                len({image for _, image in seen[:4]})
                == len({view for view, _ in seen[:4]})
                == len(set(seen[:4]))
                == count
            )


def test_hosts_make_slices_of_the_global_batch(good):
    whole = train(good, 3, rows=np.arange(12), batch_size=12)
    parts = [train(good, 3, rows=rows, batch_size=12) for rows in np.split(np.arange(12), 3)]
    assert_equal(
        [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts)
        ],
        whole,
    )


def test_bad_records_are_substituted_and_shift_nothing(spoiled):
    batches, bad = train(spoiled, 20), bad_indices(spoiled)
    sampler = Sampler(len(spoiled), 7, 5)
    assert len(bad) == 4
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(
            batch['index'], sampler.examples(sampler.positions(step, ROWS))
        )
        np.testing.assert_array_equal(
            batch['substituted'], [index in bad for index in batch['index']]
        )
        assert all(image.std() > 1 for image in batch['image'])  # photographs, not blanks
    substitutes = np.concatenate([batch['image'][batch['substituted']] for batch in batches])
    assert len({image.tobytes() for image in substitutes}) == len(substitutes) > 30

    for before, after in zip(batches, train(_Repaired(spoiled, bad), 20), strict=True):
        kept = ~before['substituted']
        np.testing.assert_array_equal(before['image'][kept], after['image'][kept])
        np.testing.assert_array_equal(before['label'][kept], after['label'][kept])


class _Repaired:
    """A source whose bad examples read as its first."""

    class_names = ('class',) * 2000

    def __init__(self, source, bad):
        self.source, self.bad, self.name = source, bad, source.name

    def __len__(self):
        return len(self.source)

    def read(self, index):
        return self.source.read(0 if index in self.bad else index)


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_text('not a picture')
    with pytest.raises(RequestError, match=r'\d.jpg: not a JPEG or PNG image'):
        train(FolderSource(str(tmp_path)), 1)


def test_a_file_that_goes_away_is_a_bad_record(good, tmp_path):
    shutil.copytree(good.path, tmp_path / 'copy')
    source = FolderSource(str(tmp_path / 'copy'))
    (tmp_path / 'copy' / source.name(2)).unlink()
    for batch in train(source, 4):
        np.testing.assert_array_equal(batch['substituted'], batch['index'] == 2)


def test_a_bug_in_a_source_shows_as_itself(good):
    class Broken(_Repaired):
        def read(self, index):
            raise KeyError('a bug')

    with pytest.raises(KeyError, match='a bug'):
        train(Broken(good, ()), 1)


def test_pictures_that_come_decoded():
    class Pixels:
        class_names = ('class',) * 2000

        def __len__(self):
            return 5

        def read(self, index):
            return Example(
                np.random.default_rng(index).integers(0, 256, [41, 41, 3], np.uint8), index
            )

    whole = DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False, workers=2)
    for batch in train(Pixels(), 2, config=whole, views=(View('image', 41),)):
        np.testing.assert_array_equal(
            batch['image'], [Pixels().read(i).image for i in batch['index']]
        )
        np.testing.assert_array_equal(batch['label'], batch['index'])


@pytest.mark.parametrize('num_hosts', [1, 2])
def test_evaluation_sees_each_example_once(spoiled, num_hosts):
    bad, seen = bad_indices(spoiled), []
    hosts = [
        list(evaluate_batches(spoiled, 8, VIEWS, CONFIG, rows))
        for rows in np.split(np.arange(8), num_hosts)
    ]
    assert [len(batches) for batches in hosts] == [2] * num_hosts  # 12 examples
    for batch in itertools.chain(*zip(*hosts)):
        assert (
            batch['image'].shape == (8 // num_hosts, 67, 67, 3)
            and batch['valid'].dtype == np.float32
        )
        for row in range(8 // num_hosts):
            index, valid = batch['index'][row], batch['valid'][row]
            assert batch['substituted'][row] == (index in bad)
            if not valid:
                assert index in bad or index == 0
                continue
            seen.append(index)
            crop = decode_simd.decode_crop(spoiled.read(index).image, center_box)
            np.testing.assert_array_equal(
                batch['tokens'][row], *decode_simd.resize(crop, VIEWS[1:])
            )
            assert batch['label'][row] == spoiled.read(index).label
    assert sorted(seen) == sorted(set(range(12)) - bad)


def test_check_source(good, spoiled, tmp_path):
    check_source(good, CONFIG)
    with pytest.raises(RequestError, match='4 of 12') as error:
        check_source(spoiled, CONFIG)
    message = str(error.value)
    for words in (
        'x_truncated.jpg (truncated)',
        'x_text.jpg (not a JPEG or PNG image)',
        'config.data.max_bad_share',
    ):
        assert words in message
    assert len(message.splitlines()) == 2
    check_source(spoiled, DataConfig(max_bad_share=0.4))
    folder = tmp_path / 'small'
    folder.mkdir()
    Image.new('RGB', (1, 1)).save(folder / 'pixel.png')
    with pytest.raises(RequestError, match='smaller than 8 pixels'):
        check_source(FolderSource(str(folder)), CONFIG)
    for i in range(9):
        shutil.copy(good.name(0), folder / f'{i}.jpg')
    check_source(FolderSource(str(folder)), CONFIG)  # one alone


def test_labels_that_no_class_has():
    class Mislabelled(_Repaired):
        def read(self, index):
            return self.source.read(index)._replace(label=3 if index == 11 else index % 3)

    source = Mislabelled(ShapesSource(13, 40, 'easy', 'train'), ())
    source.class_names = ('a', 'b', 'c')
    for batches in (
        train_batches(source, Sampler(13, 7, 0), VIEWS, CONFIG, np.arange(7)),
        evaluate_batches(source, 7, VIEWS, CONFIG, np.arange(7)),
    ):
        with pytest.raises(
            RequestError, match='shapes/train/11 has the label 3, but there are 3 classes, 0 to 2'
        ):
            list(itertools.islice(batches, 3))


def test_rand_augment_is_part_of_the_view():
    """The picture of a view with a policy is the plain one, augmented by the number of its view; an
    evaluation's is not."""
    views = [View('plain', 67), View('image', 67, rand_augment='rand-m9-mstd0.5-p1-inc1')]
    source = ShapesSource(13, 40, 'easy', 'train')
    batch = next(
        train_batches(source, Sampler(13, 7, 3), views, CONFIG, np.arange(7), start_step=5)
    )
    policy, fill = (
        parse_policy(views[1].rand_augment),
        tuple(round(255 * mean) for mean in CONFIG.mean),
    )
    for plain, image, number in zip(batch['plain'], batch['image'], batch['view']):
        np.testing.assert_array_equal(image, rand_augment(plain, policy, 3, int(number), fill))
    evaluated = next(evaluate_batches(source, 7, views, CONFIG, np.arange(7)))
    np.testing.assert_array_equal(evaluated['image'], evaluated['plain'])


def test_golden():
    """Substitutes and flips of an old run come back on a new machine; the crops' golden test stands
    with the transforms."""

    class Halves:
        """Every second example is gone; the others are black on the left and white on the right."""

        class_names = ('class',) * 2000

        def __len__(self):
            return 1009

        def read(self, index):
            if index % 2:
                raise OSError
            return Example(
                np.repeat(np.uint8([[[0], [255]]]), 8, 1).repeat(16, 0).repeat(3, 2), index
            )

    (batch,) = train(
        Halves(),
        1,
        config=DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
        views=(View('image', 16),),
    )
    # wanted: 483, 190, 374, 880, 481, 197, 818
    assert batch['label'].tolist() == [778, 190, 374, 880, 526, 428, 818]
    assert (batch['image'][:, 0, 0, 0] > 0).tolist() == [True, True, True, False, True, True, True]
