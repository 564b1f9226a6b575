"""The tools on a small run: what they write, and the requests that they refuse."""

import importlib
import json
import os

import jax
import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.grid import CELL, GAP, TITLE
from beit_jax.errors import RequestError
from beit_jax.performance.input_benchmark import views_of
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tasks.reconstruction import predict_pictures
from beit_jax.tools import benchmark, curves, reconstruct
from beit_jax.train import loop
from beit_jax.train.workdir.changes import write_config
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.photos import write_many_photos, write_photos
from tests.tools.call import call

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, tokenizer_dir):
    directory = tmp_path_factory.mktemp('run')
    assert loop.train(task_config(tiny.settings(tokenizer_dir)), directory) == 0
    return directory


def grid_size(columns, rows):
    return columns * (CELL + GAP) + GAP, TITLE + rows * (CELL + GAP)


def test_reconstruct(workdir, tmp_path):
    photos, output = tmp_path / 'photos', tmp_path / 'new' / 'p.png'
    write_photos(photos)
    call(reconstruct, workdir=workdir, images=photos, output=output, limit=3)
    assert Image.open(output).size == grid_size(4, 3)


def test_predicted_pictures(workdir):
    """The masked column is grey exactly where patches are hidden; the model's picture is the
    tokenizer's where nothing is hidden."""
    task, params = reconstruct.load_run(str(workdir))
    random = np.random.default_rng(0)
    tokenizer_params = load_tokenizer(task.config.tokenizer.path, decoder=True)[1]
    image = random.uniform(size=(3, 20, 20, 3)).astype(np.float32)
    token_image = random.uniform(size=(3, 10, 10, 3)).astype(np.float32)

    def predicted_by(params):
        pictures = predict_pictures(task, tokenizer_params, params, image, token_image, seed=0)
        return map(np.asarray, pictures)

    masked, kept, predicted = predicted_by(params)
    hidden = np.all(masked == 0.5, axis=-1)
    assert 0 < hidden.reshape(3, -1).sum(1).max() <= 11 * 16
    assert np.array_equal(masked[~hidden], image[~hidden])
    assert kept.shape == predicted.shape == (3, 10, 10, 3)
    projection = jax.tree.map(np.zeros_like, params['head']['projection'])
    untrained = params | {'head': params['head'] | {'projection': projection}}
    _, _, always_first = predicted_by(untrained)
    assert not np.allclose(always_first, kept)


@pytest.mark.parametrize('predict', ['masked', 'all'])
def test_predicted_pixels(predict, tmp_path):
    """A head that says 0.5 of every value: half a deviation above the mean of each patch that is
    predicted, the picture itself elsewhere."""
    task = make_task(task_config(tiny.settings('', target='pixels', predict=predict)))
    params = tiny.save_checkpoint(tmp_path, task)
    projection = params['head']['projection']
    projection |= {'kernel': projection['kernel'] * 0, 'bias': projection['bias'] * 0 + 0.5}
    image = np.random.default_rng(0).uniform(size=(3, 20, 20, 3)).astype(np.float32)
    masked, predicted = map(np.asarray, predict_pictures(task, {}, params, image, seed=0))
    hidden = np.all(masked == 0.5, axis=-1)
    assert 0 < hidden.sum() <= 3 * 11 * 16 and np.array_equal(masked[~hidden], image[~hidden])
    cells, patch = image.reshape(3, 5, 4, 5, 4, 3), {'axis': (2, 4, 5), 'keepdims': True}
    flat = cells.mean(**patch) + 0.5 * np.sqrt(cells.var(**patch) + 1e-6)
    flat = np.broadcast_to(flat, cells.shape).reshape(image.shape)
    expected = flat if predict == 'all' else np.where(hidden[..., None], flat, image)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    write_config(task.config, tmp_path)
    output = tmp_path / 'p.png'
    call(reconstruct, workdir=tmp_path, images='shapes', output=output, limit=2)
    assert Image.open(output).size == grid_size(3, 2)


def test_curves(workdir, tmp_path):
    call(curves, workdir=workdir, output=tmp_path / 'c.png')
    assert Image.open(tmp_path / 'c.png').size[0] > 500
    call(curves, workdir=workdir, reference=workdir, output=tmp_path / 'r.png')
    assert (tmp_path / 'r.png').stat().st_size > (tmp_path / 'c.png').stat().st_size
    steps, values = curves.read_metrics(workdir / 'metrics.jsonl')['loss']
    assert steps == [1, 2, 3, 4, 5] and len(values) == 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--images', 'shapes', '--workdir', '/nowhere'], r'there is no config.json'),
        (['--images', '/nowhere'], r'--images=/nowhere: no such file'),
        (
            ['--images', 'shapes', '--workdir', '/nowhere', '--tokenizer', 'T'],
            r'there is no config.json',
        ),
        (['--images', 'shapes', '--limit', '0'], r'--limit is 0'),
        (
            ['--images', 'shapes', '--tokenizer', '/nowhere'],
            r'the tokenizer of this run is not at /nowhere: give --tokenizer=DIR',
        ),
    ],
)
def test_bad_requests(arguments, message, workdir, tmp_path):
    with pytest.raises(RequestError, match=message):
        call(reconstruct, '--workdir', workdir, '--output', tmp_path / 'p.png', *arguments)


def test_a_path_that_cannot_be_written(tmp_path):
    """One line and status 2."""
    (tmp_path / 'file').write_text('')
    tool = ['-m', 'beit_jax.tools.fit_tokenizer', '--kind=random_projection']
    done = tiny.run([*tool, f'--output={tmp_path}/file'])
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and 'file' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_paths_that_are_not_unicode(tmp_path):
    """Given on the command line, they are read, written and printed."""
    folder = tmp_path / os.fsdecode(b'\xff')
    write_photos(folder)
    tool = ['-m', 'beit_jax.tools.check_data', '--data.path', str(folder), '--data.workers=1']
    done = tiny.run([*tool, '--json', str(folder / 'out.json')], PYTHONIOENCODING='utf-8')
    assert done.returncode == 0, done.stderr
    assert r'/\xff: 8 examples' in done.stdout
    assert r'\xff' in json.loads((folder / 'out.json').read_text())['command']


@pytest.mark.parametrize(
    'tool',
    [
        'reconstruct',
        'curves',
        'predict',
        'embed',
        'attention',
        'neighbours',
        'study',
        'benchmark',
        'import_tokenizer',
        'fit_tokenizer',
        'evaluate_tokenizer',
        'tokenize',
        'check_data',
    ],
)
def test_help_has_an_example(tool):
    parser = importlib.import_module(f'beit_jax.tools.{tool}')._arguments()
    assert f'python -m beit_jax.tools.{tool}' in parser.format_help()


def test_views_of_the_input():
    """A tokenizer's picture is made only where there is one."""
    for target, names in (('tokens', ['image', 'token_image']), ('pixels', ['image'])):
        views = views_of(task_config(tiny.settings('', target=target)))
        assert [view.name for view in views] == names


@pytest.mark.once
def test_benchmark_of_the_input(tmp_path):
    write_many_photos(tmp_path / 'photos', 40)
    (tmp_path / 'photos' / 'text.jpg').write_text('not a picture')
    command = ['-m', 'beit_jax.tools.benchmark', 'input']
    command += ['--config=configs/pretrain_imagenet1k.py:base']
    command += [f'--config.data.path={tmp_path}/photos', '--config.data.crop_scale=(0.5,1.0)']
    done = tiny.run([*command, '--images=41', '--repeats=1', f'--json={tmp_path}/figures.json'])
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['images'] == 40 and 100e3 < figures['bytes_per_image'] < 110e3
    assert 'training: ' in done.stdout
    stages = {
        'training',
        'training, its peer',
        'evaluation',
        'evaluation, its peer',
        'read',
        'decode the crop',
        'resize to 224',
        'resize to 112',
        'batch and the rest',
        'transfer',
    }
    assert figures['core_milliseconds'].keys() == stages
    assert all(0 < error < 0.3 for error in figures['grey_levels_from_pillow'].values())
    assert min(figures['ratio'].values()) > 1
    for wrong, message in (
        ('--cores=999', 'cores'),
        ('--config.data.nope=1', 'config.data.nope is not a setting'),
        ('--nope', 'is not an option'),
    ):
        options, overrides = benchmark._arguments().parse_known_args([*command[2:], wrong])
        options.overrides = overrides
        with pytest.raises(RequestError, match=message):
            benchmark.run(options)
