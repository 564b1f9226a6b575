"""Tokenizers trained in full: minutes each, `make test-slow`."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster

from beit_jax.data.pictures.load import load_images
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.models.tokenizers import dvae
from beit_jax.settings.mapping import task_config
from beit_jax.tasks.tokenizer_quality import measure
from beit_jax.train import loop
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.photos import write_photos

pytestmark = pytest.mark.slow
SETTINGS = {
    'task': 'tokenizer',
    'batch_size': 32,
    'log_every': 100,
    'save_every': 10_000,
    'compute_dtype': 'float32',
    'reconstruction': 'l2',
    'kl_weight': 0.0,
    'usage_weight': 0.01,
    'temperature_share': 0.9,
    'ema_decay': 0.99,
    'model': {'groups': 3, 'blocks': 1, 'width': 32, 'decoder_input': 32, 'vocabulary': 512},
    'optimizer': {
        'lr': 5e-3,
        'warmup_steps': 40,
        'beta2': 0.98,
        'weight_decay': 0.0,
        'clip_norm': 1.0,
    },
}
CELL = 4  # pixels a token


def shapes(count, size, split):
    source = ShapesSource(count, size, 'easy', split)
    return np.stack([source.read(i).image for i in range(count)])


def psnr_of_colours(train, test):
    """Of pictures uint8 [B, S, S, 3] whose every cell has the nearest of 512 colours: as many bits
    as 512 tokens have."""

    def cells(images):
        rows = images.shape[1] // CELL
        return (images / 255).reshape(len(images), rows, CELL, -1, CELL, 3).mean((2, 4))

    colours = cells(train).reshape(-1, 3)
    colours = colours[np.random.default_rng(0).permutation(len(colours))[:20_000]]
    clusters = sklearn.cluster.KMeans(512, n_init=1, random_state=0, max_iter=30).fit(colours)
    found = clusters.cluster_centers_[clusters.predict(cells(test).reshape(-1, 3))].reshape(
        *cells(test).shape
    )
    errors = np.square(found.repeat(CELL, 1).repeat(CELL, 2) - test / 255).mean((1, 2, 3))
    return -10 * np.log10(errors).mean()


def trained(settings, workdir):
    assert loop.train(task_config(SETTINGS | settings), workdir) == 0
    return load_tokenizer(str(workdir / 'tokenizer'), decoder=True)


def check_better_than_colours(tokenizer, train, test):
    figures, colours = measure(*tokenizer, np.array_split(test, 10)), psnr_of_colours(train, test)
    print(
        f'PSNR {figures["psnr"]:.2f} dB, colours {colours:.2f} dB; usage '
        f'{figures["codebook_usage"]:.1%}, perplexity {figures["token_perplexity"]:.0f}; agreement '
        f'{figures["agreement"]}'
    )
    assert figures['psnr'] > colours and figures['codebook_usage'] > 0.5


def test_on_shapes(tmp_path):
    data = {
        'name': 'shapes',
        'image_size': 24,
        'crop_scale': (1.0, 1.0),
        'crop_ratio': (1.0, 1.0),
        'flip': False,
        'num_evaluate_examples': 0,
    }
    tokenizer = trained({'total_steps': 500, 'data': data}, tmp_path)
    check_better_than_colours(tokenizer, shapes(1000, 24, 'train'), shapes(1000, 24, 'evaluate'))


def test_on_photographs(tmp_path):
    """Trained on random crops of eight photographs; seen on tiles of them, which the colours were
    chosen for."""
    write_photos(tmp_path / 'photos')
    data = {
        'name': 'folder',
        'path': str(tmp_path / 'photos'),
        'image_size': 32,
        'crop_scale': (0.15, 0.6),
    }
    tokenizer = trained({'total_steps': 1000, 'data': data}, tmp_path / 'run')
    tiles = []
    for n in (2, 3):
        pictures, _ = load_images(str(tmp_path / 'photos'), 32 * n)
        cut = pictures.reshape(8, n, 32, n, 32, 3).swapaxes(2, 3)
        tiles.append(cut.reshape(-1, 32, 32, 3))
    tiles = np.concatenate(tiles)
    check_better_than_colours(tokenizer, tiles, tiles)


def test_the_remedy_against_dead_codes(tmp_path):
    """The same short run with and without it."""
    data = {
        'name': 'shapes',
        'image_size': 24,
        'crop_scale': (1.0, 1.0),
        'crop_ratio': (1.0, 1.0),
        'flip': False,
        'num_evaluate_examples': 0,
    }
    usage, batches = {}, np.array_split(shapes(500, 24, 'evaluate'), 5)
    for weight in (0.0, 0.01):
        settings = {'total_steps': 150, 'data': data, 'usage_weight': weight}
        tokenizer = trained(settings, tmp_path / str(weight))
        usage[weight] = measure(*tokenizer, batches)['codebook_usage']
    print(usage)
    assert usage[0.01] > 1.5 * usage[0.0]


def of_high_and_low(x, y, function):
    """A product of float32 as a TPU makes it of three of bfloat16."""
    high = lambda v: v.astype(jnp.bfloat16).astype(jnp.float32)
    xh, yh = high(x), high(y)
    return function(xh, yh) + function(xh, high(y - yh)) + function(high(x - xh), yh)


def of_tf32(x, y, function):
    """A product of float32 as a GPU makes it of TF32: ten bits of mantissa, rounded to even."""

    def round_off(v):
        bits = lax.bitcast_convert_type(v, jnp.uint32)
        return lax.bitcast_convert_type(
            (bits + 0xFFF + ((bits >> 13) & 1)) & jnp.uint32(0xFFFFE000), jnp.float32
        )

    return function(round_off(x), round_off(y))


def of_float16(x, y, function):
    """As on a GPU, where the last layer is of TF32: of numbers of ten bits too."""
    small = lambda v: v.astype(jnp.float16).astype(jnp.float32)
    return function(small(x), small(y))


def test_default_precision_keeps_the_tokens(tmp_path, monkeypatch):
    """The quickstart's tokenizer, its default precision as a TPU computes it: at least 99.9 % of
    the tokens of float32."""
    done = tiny.run(
        ['main.py', '--config=configs/quickstart/tokenizer.py', f'--workdir={tmp_path}'],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    images, make = shapes(2000, 24, 'evaluate').astype(np.float32) / 255, dvae._conv

    def ids(precision, way=None):
        def conv(*sizes, **options):
            convolution = make(*sizes, **options)
            if way:
                convolution.conv_general_dilated = lambda x, kernel, *rest, **settings: way(
                    x,
                    kernel,
                    lambda x, kernel: lax.conv_general_dilated(x, kernel, *rest, **settings),
                )
            return convolution

        monkeypatch.setattr(dvae, '_conv', conv)
        tokenizer, params = load_tokenizer(str(tmp_path / 'tokenizer'), precision)
        return np.concatenate(
            [
                jax.jit(functools.partial(tokenizer.encode, params))(part)
                for part in np.array_split(images, 20)
            ]
        )

    exact = ids('float32')
    share = {
        'bfloat16_3x': np.mean(ids('float32', of_high_and_low) == exact),
        'tensorfloat32': np.mean(ids('float32', of_tf32) == exact),
        'float16': np.mean(ids('float32', of_float16) == exact),
        'bfloat16': np.mean(ids('bfloat16') == exact),
    }
    print(share)
    assert share['bfloat16_3x'] >= 0.999 > share['tensorfloat32'] >= 0.997
    assert share['float16'] >= 0.997
    assert 0.99 > share['bfloat16'] > 0.95
    assert task_config({'task': 'pretrain', 'total_steps': 1}).tokenizer.precision == 'bfloat16_3x'
    for precision in ('bfloat16_3x', 'tensorfloat32', 'float16'):  # what they are on a CPU
        np.testing.assert_array_equal(ids(precision), exact)
