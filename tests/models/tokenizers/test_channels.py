"""Tokenizers of pictures of other channels that are not square."""

import dataclasses
import json

from flax import nnx
import jax
import numpy as np
import pytest

from beit_jax.models.tokenizers import dvae, kmeans, make_tokenizer, random_projection
from beit_jax.weights.tokenizer import fingerprint, load_tokenizer, save_tokenizer
from beit_jax.weights.trees import digest

CHANNELS, GRID, SIDE = 5, (2, 3), 4
ARCHITECTURE = {'vocabulary': 7, 'patch_size': SIDE, 'channels': CHANNELS}


@pytest.fixture(scope='module')
def pictures():
    shape = (3, GRID[0] * SIDE, GRID[1] * SIDE, CHANNELS)
    return np.random.default_rng(0).random(shape, np.float32)


def cut(pictures):
    """[B, P, V] by a plain loop."""
    patches = []
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            y, x = row * SIDE, column * SIDE
            patches.append(pictures[:, y : y + SIDE, x : x + SIDE].reshape(len(pictures), -1))
    return np.stack(patches, 1)


def test_kmeans(pictures, tmp_path):
    patches = cut(pictures).reshape(-1, CHANNELS * SIDE**2)
    config = kmeans.Config(**ARCHITECTURE)
    params = kmeans.fit(jax.random.key(0), patches, config, 5)
    size = (GRID[0] * SIDE, GRID[1] * SIDE)
    save_tokenizer(tmp_path, 'kmeans', config, size, params)
    tokenizer, params = load_tokenizer(str(tmp_path), decoder=True)
    assert tokenizer.image_size == size and tokenizer.channels == CHANNELS
    ids = np.asarray(tokenizer.encode(params, pictures))
    centred = (patches - patches.mean(1, keepdims=True)) / 0.25
    centred /= np.sqrt(np.square(centred).mean(1, keepdims=True)) + 0.6
    centroids = np.asarray(params['encoder']['centroids'])
    distances = np.square(centred[:, None] - centroids).sum(-1)
    np.testing.assert_array_equal(ids.ravel(), distances.argmin(1))
    drawn = np.asarray(tokenizer.decode(params, ids, GRID))
    assert drawn.shape == pictures.shape
    np.testing.assert_array_equal(cut(drawn), np.asarray(params['decoder']['patches'])[ids])


def test_random_projection(pictures):
    config = random_projection.Config(**ARCHITECTURE, code_width=3)
    params = random_projection.draw(jax.random.key(1), config)
    tokenizer = make_tokenizer('random_projection', dataclasses.asdict(config), (8, 12))
    assert tokenizer.encode(params, pictures).shape == (3, 6) and tokenizer.channels == CHANNELS


def test_dvae(pictures):
    architecture = {'groups': 3, 'blocks': 1, 'width': 8, 'decoder_input': 8, 'vocabulary': 7}
    architecture['channels'] = CHANNELS
    model = dvae.DVAE(dvae.Config(**architecture), rngs=nnx.Rngs(0))
    tokenizer = make_tokenizer('dvae', architecture, (8, 12))
    params = nnx.to_pure_dict(nnx.state(model))
    ids = tokenizer.encode(params, pictures)
    logits = model.encoder(dvae.map_pixels(pictures))
    assert logits.shape == (3, *GRID, 7)
    np.testing.assert_array_equal(ids, logits.argmax(-1).reshape(3, -1))
    codes = jax.nn.one_hot(ids.reshape(3, *GRID), 7)
    prediction = model.decoder(codes)
    assert prediction.shape == (3, 8, 12, 2 * CHANNELS)
    expected = dvae.unmap_pixels(jax.nn.sigmoid(prediction[..., :CHANNELS]))
    np.testing.assert_allclose(tokenizer.decode(params, ids, GRID), expected, atol=1e-6)


def test_the_fingerprint_of_rgb_is_that_of_a_tokenizer_that_does_not_say_so():
    """Else a run could not go on, or read its cache, with the tokenizer it began with."""
    config = kmeans.Config(vocabulary=7, patch_size=SIDE)
    tokenizer = make_tokenizer('kmeans', dataclasses.asdict(config), 8)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tokenizer.abstract())
    said = {'vocabulary': 7, 'patch_size': SIDE, 'contrast_floor': 0.6}
    expected = digest(params['encoder'], json.dumps(['kmeans', said], sort_keys=True))
    assert fingerprint(tokenizer, params) == expected
