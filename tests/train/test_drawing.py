"""Held-out pictures that a run draws as it learns."""

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.grid import grid_picture
from beit_jax.errors import RequestError
from beit_jax.images.color import to_float
from beit_jax.settings.mapping import task_config
from beit_jax.tasks.reconstruction import predict_pictures
from beit_jax.train import loop
from beit_jax.train.run import Run
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.tokenizer import load_tokenizer, save_tokenizer
from tests import tiny
from tests.train.test_resume import assert_same_run

PICTURES = {'pictures': 3}


@pytest.mark.once
def test_pre_training(uninterrupted, tokenizer_dir, tmp_path):
    """The run is the same, bit for bit; the picture is what its parameters make of three images
    that are spread over the held-out ones."""
    config = task_config(tiny.settings(tokenizer_dir, **PICTURES))
    assert loop.train(config, tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)
    drawn = np.asarray(Image.open(tmp_path / 'images' / 'held_out_pictures.png'))
    run, (params, _) = Run(config, tmp_path), load_params(str(tmp_path))
    _, arrays = load_tokenizer(str(tokenizer_dir), decoder=True)
    batches = run.batches.on_host(run.batches.frozen, 'evaluate', 3)
    batch = {name: value[:3] for name, value in next(batches).items()}
    images = to_float(batch['image']), to_float(batch['token_image'])
    made = predict_pictures(run.task, arrays, params, *images, seed=0)
    titles = 'original', 'masked', 'tokenizer', 'model'
    wanted = np.asarray(grid_picture([images[0], *made], titles))
    np.testing.assert_allclose(drawn.astype(int), wanted.astype(int), atol=1)
    (events,) = (tmp_path / 'tensorboard').iterdir()
    assert events.read_bytes().count(b'\x89PNG') == 3  # after steps 2, 4 and 5


@pytest.mark.usefixtures('one_device')
def test_a_tokenizer(tmp_path):
    """Training it draws pictures beside what it makes of them."""
    settings = tiny.settings('', task='tokenizer', total_steps=2, **PICTURES)
    settings['model'] = {'groups': 2, 'blocks': 1, 'width': 8, 'decoder_input': 8, 'vocabulary': 17}
    kept = {name: value for name, value in settings.items() if name not in ('tokenizer', 'mask')}
    assert loop.train(task_config(kept), tmp_path) == 0
    shape = np.asarray(Image.open(tmp_path / 'images' / 'held_out_pictures.png')).shape
    original = np.zeros((3, 20, 20, 3), np.uint8)
    assert shape == np.asarray(grid_picture([original] * 2, ('', ''))).shape


def test_what_cannot_draw(tokenizer_dir, tmp_path):
    """A tokenizer without a decoder is refused before anything is written."""
    tokenizer, params = load_tokenizer(str(tokenizer_dir))
    save_tokenizer(tmp_path / 'half', 'dvae', tokenizer.config, 10, params)
    config = task_config(tiny.settings(tmp_path / 'half', **PICTURES))
    with pytest.raises(RequestError, match=r'no decoder.*cannot draw.*Set config.pictures=0'):
        loop.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
