"""Pre-training, fine-tuning and segmentation on pictures of twelve channels of 16 bits that are not
square, from files to timm."""

import json

import numpy as np
from PIL import Image
import pytest

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import (
    attention,
    check_data,
    evaluate_tokenizer,
    fit_tokenizer,
    predict,
    reconstruct,
    tokenize,
)
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from tests import spectra, tiny
from tests.tools.call import call
from tests.train.test_resume import assert_same_run, metrics_lines

pytestmark = pytest.mark.usefixtures('one_device')
SIZE, COUNT = (20, 24), 400
FORM = {'data.channels': spectra.CHANNELS, 'data.bits': 16}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return spectra.write(tmp_path_factory.mktemp('spectra') / 'set', COUNT)


@pytest.fixture(scope='module')
def tokenizer(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer')
    options = {'kind': 'kmeans', 'vocabulary': 32, 'patch_size': 4, 'patches': 2500}
    options |= {'image_size': '20,24', 'output': path / 'kmeans', 'data.path': folder}
    call(fit_tokenizer, **options, **FORM)
    return path / 'kmeans'


def data_of(folder, **changed):
    return {
        'name': 'folder',
        'path': str(folder),
        'holdout': 0.25,
        'image_size': SIZE,
        'channels': spectra.CHANNELS,
        'bits': 16,
        'mean': (0.5,),
        'std': (0.25,),
        'crop_scale': (0.5, 1.0),
        'color_jitter': (0.4, 0.4, 0.0),
        'flip': True,
        'num_examples': 1,
    } | changed


def settings(folder, tokenizer, **changed):
    config = tiny.settings(tokenizer, **changed)
    return config | {'data': data_of(folder, **changed.get('data', {}))}


@pytest.mark.once
def test_learns(folder, tokenizer, tmp_path):
    """The tokens of hidden patches, far more often than by always guessing the most frequent."""
    config = settings(
        folder,
        tokenizer,
        total_steps=200,
        batch_size=32,
        evaluate_every=0,
        save_every=200,
        log_every=50,
        optimizer={'lr': 5e-3, 'warmup_steps': 10},
        model={'width': 32, 'hidden': 64, 'init_std': 0.1},
    )
    assert loop.train(task_config(config), tmp_path) == 0
    held_out = metrics_lines(tmp_path)[-1]
    accuracy, majority = (held_out[f'eval/{name}_accuracy'] for name in ('token', 'majority'))
    assert accuracy > 5 * majority, (accuracy, majority)


def test_resumes_bit_for_bit(folder, tokenizer, tmp_path, monkeypatch):
    config = task_config(settings(folder, tokenizer))
    assert loop.train(config, tmp_path / 'whole') == 0
    for step in (2, 4):
        monkeypatch.setattr(Stop, 'asked', lambda self, number, step=step: number == step)
        assert loop.train(config, tmp_path / 'parts') == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path / 'parts') == 0
    assert_same_run(tmp_path / 'parts', tmp_path / 'whole')


@pytest.fixture(scope='module')
def trained(folder, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp('trained')
    config = settings(folder, tokenizer, total_steps=2, evaluate_every=0, save_every=2)
    assert loop.train(task_config(config), path) == 0
    return path


def test_tools(folder, tokenizer, trained, tmp_path, capsys):
    """Each reads the files as training does, and draws the channels that are asked for."""
    one = {'images': folder, 'limit': 3, 'output': tmp_path / 'drawn.png'}
    call(reconstruct, workdir=trained, bands='3,2,1', **one)
    drawn = Image.open(tmp_path / 'drawn.png')
    assert drawn.width > 4 * 144 and drawn.height < 3 * 144  # 120 x 144 each
    call(attention, checkpoint=trained, bands='11', **one)
    with pytest.raises(RequestError, match=r'--bands=12: there are channels 0 to 11'):
        call(attention, checkpoint=trained, bands='12', **one)
    with pytest.raises(RequestError, match=r'--images=shapes draws RGB of 8 bits'):
        call(attention, checkpoint=trained, **one | {'images': 'shapes'})
    judge = {'tokenizer': tokenizer, 'limit': 8, 'batch': 4, 'output': tmp_path / 'judged.png'}
    call(evaluate_tokenizer, **judge, **{'data.path': folder}, **FORM)
    with pytest.raises(RequestError, match=r'is for pictures of 12 channels, --data reads 3 of 8'):
        call(evaluate_tokenizer, **judge, **{'data.path': folder})

    model = beit_jax.load(trained)
    files = sorted(folder.iterdir())[:5]
    arrays = [np.load(file) for file in files]
    pixels = model.preprocess(list(map(str, files)))
    assert pixels.dtype == np.uint16 and pixels.shape == (5, *SIZE, spectra.CHANNELS)
    np.testing.assert_array_equal(pixels, model.preprocess(arrays))
    call(
        predict,
        checkpoint=trained,
        images=folder,
        what='tokens',
        limit=5,
        output=tmp_path / 't.npz',
    )
    np.testing.assert_array_equal(np.load(tmp_path / 't.npz')['tokens'], model.tokens(pixels))
    np.save(tmp_path / 'all.npy', np.stack(arrays))
    for images in (tmp_path / 'all.npy', files[0]):
        call(predict, checkpoint=trained, images=images, what='tokens', output=tmp_path / 'u.npz')
        count = 5 if images.name == 'all.npy' else 1
        found = np.load(tmp_path / 'u.npz')['tokens']
        np.testing.assert_array_equal(found, model.tokens(pixels)[:count])
    with pytest.raises(RequestError, match=r'takes an array of uint16, .* \[B, 20, 24, 12\]'):
        model.tokens(pixels[..., :3])

    ids = {'tokenizer': tokenizer, 'output': tmp_path / 'ids.npy', 'batch': 5, 'images': files[0]}
    call(tokenize, **ids, **FORM)
    assert np.load(tmp_path / 'ids.npy').shape == (1, 30)
    ids |= {'output': tmp_path / 'more.npy', 'data.path': folder}
    del ids['images']
    call(tokenize, **ids, **FORM)
    assert np.load(tmp_path / 'more.npy').shape == (COUNT, 30)
    capsys.readouterr()


@pytest.mark.once
def test_a_dvae_of_ones_own(folder, tmp_path):
    model = {'groups': 3, 'blocks': 1, 'width': 8, 'decoder_input': 8, 'vocabulary': 17}
    run = {'task': 'tokenizer', 'batch_size': 8, 'total_steps': 1, 'compute_dtype': 'float32'}
    config = task_config(run | {'model': model, 'data': data_of(folder)})
    assert loop.train(config, tmp_path / 'run') == 0
    task = make_task(task_config(settings(folder, tmp_path / 'run' / 'tokenizer')))
    assert task.tokenizer.channels == spectra.CHANNELS and task.tokenizer.factor == 4
    assert task.prepare_views[0].shape == (*SIZE, spectra.CHANNELS)


def test_check_data(folder, tmp_path, capsys):
    call(check_data, json=tmp_path / 'found.json', **{'data.path': folder}, **FORM)
    found, text = json.loads((tmp_path / 'found.json').read_text()), capsys.readouterr().out
    whole = np.stack([np.load(file) for file in sorted(folder.iterdir())]) / 65535
    for name, expected in (('mean', whole.mean((0, 1, 2))), ('std', whole.std((0, 1, 2)))):
        np.testing.assert_allclose(found['channels'][name], expected, atol=1e-4)
    assert found['modes'] == {'12 x uint16': COUNT} and found['usable']
    command = found['command']
    for part in ('channels=12', 'bits=16', 'mean=(', 'std=(', 'color_jitter=(0.0,0.0,0.0)'):
        assert f'--config.data.{part}' in command and command in text
    wrong = FORM | {'data.channels': 11}
    with pytest.raises(RequestError, match=f'not one of {COUNT} examples can be used'):
        call(check_data, **{'data.path': folder}, **wrong)
    assert '12 channels, not config.data.channels=11' in capsys.readouterr().out


@pytest.mark.once
def test_fine_tuning_and_labels(folder, trained, tmp_path):
    """Classes of folders, and those of pixels, from the pre-trained encoder."""
    for number, file in enumerate(sorted(folder.iterdir())[:40]):
        pixels = np.load(file)
        for kind in ('classes/a', 'classes/b', 'set/images', 'set/annotations'):
            (tmp_path / kind).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / 'classes' / 'ab'[number % 2] / file.name, pixels)
        np.save(tmp_path / 'set' / 'images' / file.name, pixels)
        label_map = Image.fromarray((pixels[..., 0] > 32768).astype(np.uint8))
        label_map.save(tmp_path / 'set' / 'annotations' / f'{file.stem}.png')
    (tmp_path / 'set' / 'classes.txt').write_text('dark\nbright\n')
    short = {'init': str(trained), 'total_steps': 2, 'evaluate_every': 0, 'save_every': 2}
    short |= {'model': {'layer_scale': 0.1}}
    config = tiny.classify_settings(**short)
    config['data'] = data_of(tmp_path / 'classes')
    assert loop.train(task_config(config), tmp_path / 'classify') == 0
    assert beit_jax.load(tmp_path / 'classify').logits(
        np.zeros((1, *SIZE, 12), np.uint16)
    ).shape == (1, 2)
    config = tiny.segment_settings(**short, distort=False)
    config['data'] = data_of(tmp_path / 'set')
    config['model'] |= {'depth': 2}
    assert loop.train(task_config(config), tmp_path / 'segment') == 0
    assert metrics_lines(tmp_path / 'segment')[-1]['eval/images'] == 10
    images = {'images': tmp_path / 'set' / 'images', 'limit': 2, 'output': tmp_path / 'maps'}
    call(predict, checkpoint=tmp_path / 'segment', **images)
    maps = sorted((tmp_path / 'maps').iterdir())
    assert len(maps) == 2 and Image.open(maps[0]).size == (28, 28)


@pytest.mark.parametrize(
    'changed, message',
    [
        (
            {'data': {'mean': (0.1, 0.2)}},
            r'config.data.mean has 2 numbers, but 12 channels are read',
        ),
        (
            {'data': {'color_jitter': (0.4,) * 3}},
            r'changes the saturation \(0.4\), .* \(0.4,0.4,0.0\)',
        ),
        (
            {'model': {'channels': 5}},
            r'config.model.channels is 5, config.data reads 12: leave it 3',
        ),
        ({'data': {'image_size': (20, 30)}}, 'an image of 20 x 30 cannot be cut into patches of 4'),
        ({'data': {'image_size': (24, 20)}}, r'set config.tokenizer.image_size=24,20'),
    ],
)
def test_refused(changed, message, folder, tokenizer, tmp_path):
    with pytest.raises(RequestError, match=message):
        loop.train(task_config(settings(folder, tokenizer, **changed)), tmp_path / 'run')


def test_a_tokenizer_of_other_channels(folder, tokenizer_dir, tmp_path):
    message = 'is for pictures of 3 channels, config.data reads 12: fit one to these'
    with pytest.raises(RequestError, match=message):
        loop.train(task_config(settings(folder, tokenizer_dir)), tmp_path / 'run')
    config = tiny.classify_settings(rand_augment='rand-m9-mstd0.5-inc1')
    config['data'] = data_of(folder)
    with pytest.raises(RequestError, match='changes the colours of RGB of 8 bits'):
        task_config(config)
    config = tiny.segment_settings()
    config['data'] = data_of(folder)
    with pytest.raises(RequestError, match=r'config.distort changes hue and saturation'):
        task_config(config)
