"""Batches of pictures of other channels, bits and shapes: the same from every source."""

import numpy as np
from PIL import Image
import pytest
import webdataset

from beit_jax.data.config import DataConfig, SegmentDataConfig
from beit_jax.data.pictures import arrays
from beit_jax.data.pictures.boxes import center_box
from beit_jax.data.pipeline import check_source, evaluate_batches
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import RequestError
from tests.data import batches
from tests.data.pictures.test_arrays import made, stack

CHANNELS, COUNT = 5, 11
SETTINGS = {'channels': CHANNELS, 'bits': 16, 'bands': (3, 0, 4), 'image_size': (24, 32)}


@pytest.fixture(scope='module')
def pictures():
    random = np.random.default_rng(3)
    return [np.roll(made(CHANNELS), random.integers(0, 30, 2), (0, 1)) for _ in range(COUNT)]


@pytest.fixture(scope='module')
def folders(pictures, tmp_path_factory):
    """{kind: settings}: .npy and TIFF in class folders, and a tar of .npy."""
    root = tmp_path_factory.mktemp('formats')
    for number, picture in enumerate(pictures):
        for kind in ('npy', 'tif'):
            path = root / kind / 'ab'[number % 2] / f'{number:02}.{kind}'
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == 'npy':
                np.save(path, picture)
            else:
                path.write_bytes(stack(picture))
    (root / 'tar').mkdir()
    order = sorted(range(COUNT), key=lambda number: number % 2)  # of the class folders
    with webdataset.TarWriter(str(root / 'tar' / 'train-000.tar')) as writer:
        for place, number in enumerate(order):
            writer.write({'__key__': f'{place:05}', 'npy': pictures[number], 'cls': number % 2})
    return {
        'npy': {'path': str(root / 'npy')},
        'tif': {'path': str(root / 'tif')},
        'tar': {'path': str(root / 'tar'), 'name': 'webdataset'},
    }


def views(config):
    return config.view('image'), config.view('tokens', (12, 16), 'lanczos3')


def test_every_source_gives_the_same(folders, pictures):
    made_of = {}
    for kind, settings in folders.items():
        config = DataConfig(workers=2, **SETTINGS, **settings)
        source = open_source(config, 'train')
        assert len(source) == COUNT and len(source.class_names) == 2
        check_source(source, config)
        made_of[kind] = batches.train(source, 4, config=config, views=views(config))
    for kind in ('tif', 'tar'):
        batches.assert_equal(made_of[kind], made_of['npy'])
    batch = made_of['npy'][0]
    assert batch['image'].dtype == np.uint16 and batch['image'].shape[1:] == (24, 32, 3)
    assert batch['tokens'].shape[1:] == (12, 16, 3)
    order = sorted(range(COUNT), key=lambda number: number % 2)
    for index, grey in zip(batch['index'], batch['grey']):
        chosen = pictures[order[index]][..., [3, 0, 4]].astype(np.float64) / 65535
        assert grey == pytest.approx(chosen.mean((0, 1)) @ (0.299, 0.587, 0.114), rel=1e-6)


def test_evaluation(folders, pictures):
    config = DataConfig(workers=2, **SETTINGS, **folders['npy'])
    source, rows = open_source(config, 'train'), np.arange(4)
    found = list(evaluate_batches(source, 4, views(config), config, rows, 0.9))
    order = sorted(range(COUNT), key=lambda number: number % 2)
    for place, number in enumerate(order):
        picture = pictures[number][..., [3, 0, 4]]
        box = center_box(*picture.shape[:2], (24, 32), 0.9)
        expected = arrays.resize(picture, (24, 32), 'bicubic', box)
        np.testing.assert_array_equal(found[place // 4]['image'][place % 4], expected)
    assert sum(batch['valid'].sum() for batch in found) == COUNT


def test_a_mixed_set_is_named(folders, tmp_path, pictures):
    for number, picture in enumerate(pictures):
        np.save(tmp_path / f'{number}.npy', picture)
    np.save(tmp_path / '7.npy', pictures[7][..., :4])
    config = DataConfig(path=str(tmp_path), **SETTINGS)
    source = open_source(config, 'train')
    message = r'1 of 11 examples .*7.npy \(.* 4 channels, not config.data.channels=5'
    with pytest.raises(RequestError, match=message):
        check_source(source, config)
    config = DataConfig(path=str(tmp_path), **SETTINGS, max_bad_share=0.1)
    check_source(source, config)
    used = np.concatenate(
        [b['used'] for b in batches.train(source, 4, config=config, views=views(config))]
    )
    names = {source.name(index).rpartition('/')[2] for index in used}
    assert '7.npy' not in names and len(names) == 10
    config = DataConfig(path=folders['npy']['path'], **SETTINGS | {'bits': 8})
    with pytest.raises(RequestError, match=r'11 of 11 .*16 bits a value, not .*bits=8'):
        check_source(open_source(config, 'train'), config)


def test_label_maps(tmp_path, pictures):
    for number, picture in enumerate(pictures[:3]):
        for kind in ('images', 'annotations'):
            (tmp_path / kind).mkdir(exist_ok=True)
        np.save(tmp_path / 'images' / f'{number}.npy', picture)
        classes = (picture[..., 3] > 32768).astype(np.uint8)
        Image.fromarray(classes).save(tmp_path / 'annotations' / f'{number}.png')
    config = SegmentDataConfig(path=str(tmp_path), workers=2, mean=(0.25,), **SETTINGS)
    config = config.normalized()
    source = open_source(config, 'train')
    shown = config.view('image'), config.view('label_map', 0, 'nearest')
    whole = 0
    for batch in batches.train(source, 8, config=config, views=shown):
        assert batch['image'].shape[1:] == (24, 32, 3) and batch['label_map'].shape[1:] == (24, 32)
        assert batch['label_map'].dtype == np.uint8 and batch['image'].dtype == np.uint16
        there = batch['label_map'] != 255
        assert (batch['image'][~there] == round(65535 * 0.25)).all()
        bright = batch['image'][..., 0] > 32768
        assert (bright == batch['label_map'])[there].mean() > 0.85  # pixels are resampled
        whole += there.all((1, 2)).sum()
    assert whole > 20


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            {'channels': 4, 'bands': (1, 4)},
            'names channel 4, but config.data.channels=4 has 0 to 3',
        ),
        ({'bits': 12}, 'config.data.bits is 12: it takes 8 or 16'),
        ({'bits': 16, 'image_ops': 'tensorflow'}, 'set it to simd'),
        ({'name': 'shapes', 'channels': 1}, 'draws RGB of 8 bits'),
    ],
)
def test_settings(settings, message):
    with pytest.raises(RequestError, match=message):
        DataConfig(**settings)


def test_mean_and_jitter():
    config = DataConfig(channels=12, mean=(0.1,), std=tuple(0.1 + i / 20 for i in range(12)))
    assert config.normalized().mean == (0.1,) * 12 and config.normalized().std == config.std
    with pytest.raises(RequestError, match=r'data.mean has 3 numbers, but 12 channels are read'):
        DataConfig(channels=12).normalized()
    with pytest.raises(RequestError, match=r'set it to \(0.4,0.4,0.0\)'):
        config.check_jitter()
    DataConfig(channels=12, color_jitter=(0.4, 0.4, 0.0)).check_jitter()
    assert DataConfig(image_size=(64, 64)).image_size == 64
    assert DataConfig(image_size=[64, 96]).image_size == (64, 96)
