"""Batches: their form, pixels that follow from seed and position alone, hosts, resuming."""

import dataclasses
import functools
import io
import itertools
import sys

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import DataConfig, View
from beit_jax.data.pictures import decode_simd
from beit_jax.data.pictures.boxes import DRAWS, center_box, random_box, whole_box
from beit_jax.data.pictures.rand_augment import parse_policy, rand_augment
from beit_jax.data.pipeline import evaluate_batches, train_batches
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.data.sources.source import Example
from beit_jax.errors import RequestError
from tests.data.batches import CONFIG, ROWS, VIEWS, assert_equal, joined, train
from tests.data.ways import each_name, reference


def test_batches_have_the_promised_form(good):
    for step, batch in enumerate(train(good, 3)):
        forms = {key: (value.dtype, value.shape) for key, value in batch.items()}
        assert forms == {
            'image': (np.uint8, (7, 67, 67, 3)),
            'tokens': (np.uint8, (7, 31, 31, 3)),
            'grey': (np.float32, (7,)),
            'label': (np.int32, (7,)),
            'index': (np.int64, (7,)),
            'view': (np.uint32, (7,)),
            'substituted': (bool, (7,)),
            'used': (np.int64, (7,)),
            'valid': (np.float32, (7,)),
        }
        sampler = Sampler(len(good), 7, 5)
        expected = sampler.examples(sampler.positions(step, ROWS))
        np.testing.assert_array_equal(batch['index'], expected)
        assert batch['label'].tolist() == [good.read(i).label for i in batch['index']]
        assert batch['valid'].tolist() == [1] * 7 and not batch['substituted'].any()


def test_pixels_follow_from_seed_and_position_alone(good):
    """Made again outside the threads, one by one; a flip is at 1/2: 84 draws lie within 27 .. 57
    but for one seed in 1000."""
    flips, crop = 0, {'scale': CONFIG.crop_scale, 'ratio': CONFIG.crop_ratio}
    for step, batch in enumerate(train(good, 12)):
        for row, index in enumerate(batch['index']):
            flip, *draws = uniform(5, 7 * step + row, 1 + DRAWS)
            flips += flip < 0.5
            box_of = functools.partial(random_box, draws, **crop)
            cropped = decode_simd.decode_crop(good.read(index).image, box_of)
            # one crop and one flip for both views
            for view, expected in zip(VIEWS, decode_simd.resize(cropped, VIEWS)):
                turned = expected[:, :: -1 if flip < 0.5 else 1]
                np.testing.assert_array_equal(batch[view.name][row], turned)
    assert 27 <= flips <= 57


@each_name
def test_grey_of_the_whole_picture(spoiled, image_ops):
    """Of that which is shown, as Pillow has it; the crops stay as they are without it."""
    config = dataclasses.replace(CONFIG, image_ops=image_ops, color_jitter=(0.0, 0.4, 0.0))
    plain = dataclasses.replace(config, color_jitter=(0.0, 0.0, 0.0))
    for batch, other in zip(train(spoiled, 3, config=config), train(spoiled, 3, config=plain)):
        for grey, used in zip(batch['grey'], batch['used']):
            with Image.open(io.BytesIO(spoiled.read(used).image)) as image:
                expected = np.asarray(image.convert('RGB').convert('L')).mean() / 255
            assert grey == pytest.approx(expected, abs=1e-3)
        assert not other['grey'].any()
        if image_ops == 'simd':
            np.testing.assert_array_equal(batch['image'], other['image'])


def uniform(seed, number, count):
    """What is drawn for a view, float64 [count]."""
    philox = np.random.Philox(key=np.uint64([seed, number]), counter=np.uint64([0, 0, 0, 2]))
    return [int(bits) / 2**64 // 2**-53 * 2**-53 for bits in philox.random_raw(count)]


def test_without_the_quick_libraries(good, monkeypatch):
    """The same crops and flips, and pixels that differ by a rounding."""
    reference()
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
    one_thread = dataclasses.replace(CONFIG, workers=1, prefetch=1)
    assert_equal(train(spoiled, 9, config=one_thread), whole)
    assert not np.array_equal(train(spoiled, 1, seed=6)[0]['image'], whole[0]['image'])


def test_resumes_past_32_bits(good):
    step = 2**40
    first, second = train(good, 2, step)
    assert_equal(train(good, 1, step + 1), [second])
    (other,) = train(good, 1, step + 2**32)
    assert not np.array_equal(first['image'], other['image'])


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
            views, images = zip(*seen[:4])
            assert len(set(images)) == len(set(views)) == len(set(seen[:4])) == count


def test_hosts_make_slices_of_the_global_batch(good):
    whole = train(good, 3, rows=np.arange(12), batch_size=12)
    hosts = [train(good, 3, rows=rows, batch_size=12) for rows in np.split(np.arange(12), 3)]
    assert_equal(joined(hosts), whole)


def test_pictures_that_come_decoded():
    class Pixels:
        class_names = ('class',) * 2000

        def __len__(self):
            return 5

        def read(self, index):
            rng = np.random.default_rng(index)
            return Example(rng.integers(0, 256, [41, 41, 3], np.uint8), index)

    whole = DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False, workers=2)
    for batch in train(Pixels(), 2, config=whole, views=(View('image', 41),)):
        expected = [Pixels().read(i).image for i in batch['index']]
        np.testing.assert_array_equal(batch['image'], expected)
        np.testing.assert_array_equal(batch['label'], batch['index'])


@pytest.mark.parametrize('num_hosts', [1, 2])
def test_evaluation_sees_each_example_once(spoiled, bad, num_hosts):
    seen = []
    hosts = [
        list(evaluate_batches(spoiled, 8, VIEWS, CONFIG, rows))
        for rows in np.split(np.arange(8), num_hosts)
    ]
    assert [len(batches) for batches in hosts] == [2] * num_hosts  # 12 examples
    for batch in itertools.chain(*zip(*hosts)):
        assert batch['image'].shape == (8 // num_hosts, 67, 67, 3)
        assert batch['valid'].dtype == np.float32
        for row in range(8 // num_hosts):
            index, valid = batch['index'][row], batch['valid'][row]
            assert batch['substituted'][row] == (index in bad)
            if not valid:
                assert index in bad or index == 0
                continue
            seen.append(index)
            pixels = decode_simd.decode_crop(spoiled.read(index).image, whole_box)
            # of the first view, for all show one and the same crop
            box = center_box(*pixels.shape[:2], VIEWS[0].size)
            (expected,) = decode_simd.resize(pixels, VIEWS[1:], box=box)
            np.testing.assert_array_equal(batch['tokens'][row], expected)
            assert batch['label'][row] == spoiled.read(index).label
    assert sorted(seen) == sorted(set(range(12)) - bad)


def test_rand_augment_is_part_of_the_view():
    """The picture of a view with a policy is the plain one, augmented by the number of its view; an
    evaluation's is not."""
    views = [View('plain', 67), View('image', 67, rand_augment='rand-m9-mstd0.5-p1-inc1')]
    source = ShapesSource(13, 40, 'easy', 'train')
    batch = next(train_batches(source, Sampler(13, 7, 3), views, CONFIG, ROWS, start_step=5))
    policy = parse_policy(views[1].rand_augment)
    fill = tuple(round(255 * mean) for mean in CONFIG.mean)
    for plain, image, number in zip(batch['plain'], batch['image'], batch['view']):
        np.testing.assert_array_equal(image, rand_augment(plain, policy, 3, int(number), fill))
    evaluated = next(evaluate_batches(source, 7, views, CONFIG, ROWS))
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
            row = np.uint8([[[0], [255]]]).repeat(8, 1)
            return Example(row.repeat(16, 0).repeat(3, 2), index)

    whole = DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    (batch,) = train(Halves(), 1, config=whole, views=(View('image', 16),))
    # wanted: 483, 190, 374, 880, 481, 197, 818
    assert batch['label'].tolist() == [778, 190, 374, 880, 526, 428, 818]
    assert (batch['image'][:, 0, 0, 0] > 0).tolist() == [True, True, True, False, True, True, True]
