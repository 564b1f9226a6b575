"""Tokenizers of normalised patches, against scikit-learn and NumPy."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics

from beit_jax.errors import RequestError
from beit_jax.models.patches import patchify
from beit_jax.models.platform import traced_for
from beit_jax.models.tokenizers import kmeans, make_tokenizer, random_projection, token_ids

SIZES = {'vocabulary': 7, 'patch_size': 3}


@pytest.fixture
def images():
    return np.random.default_rng(0).random((5, 15, 15, 3), np.float32)


def numpy_patches(images):
    """[B, 25, 27], by slicing."""
    patches = []
    for y, x in itertools.product(range(0, 15, 3), repeat=2):
        patches.append(images[:, y : y + 3, x : x + 3].reshape(len(images), -1))
    return np.stack(patches, axis=1)


def numpy_normalized(patches):
    x = (patches - 0.5) / 0.25
    x = x - x.mean(-1, keepdims=True)
    return x / (x.std(-1, keepdims=True) + 0.6)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_the_token_is_the_first_of_the_highest_scores(platform):
    scores = np.random.default_rng(2).integers(-3, 3, (3, 5, 7)).astype(np.float32)
    ids = jax.jit(traced_for(platform, token_ids))(scores)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, np.argmax(scores, axis=-1))


def test_patches(images):
    patches = numpy_patches(images)
    np.testing.assert_array_equal(patchify(images, 3), patches)
    found = kmeans.normalize_patches(patches, 0.6)
    np.testing.assert_allclose(found, numpy_normalized(patches), atol=1e-5)
    brighter = kmeans.normalize_patches(numpy_patches(images * 0.9 + 0.1), 1e-6)
    np.testing.assert_allclose(brighter, kmeans.normalize_patches(patches, 1e-6), atol=1e-3)


def test_kmeans_tokens_are_the_nearest_centroids(images):
    tokenizer, random = make_tokenizer('kmeans', SIZES, 15), np.random.default_rng(1)
    centroids = random.normal(size=(7, 27)).astype(np.float32)
    x = numpy_normalized(numpy_patches(images)).reshape(-1, 27)
    expected = sklearn.metrics.pairwise_distances_argmin(x, centroids)
    ids = tokenizer.encode({'encoder': {'centroids': centroids}}, images)
    np.testing.assert_array_equal(ids, expected.reshape(5, 25))
    assert ids.dtype == jnp.int32 and len(np.unique(ids)) == 7


def test_kmeans_draws_its_patches():
    tokenizer = make_tokenizer('kmeans', SIZES, 15)
    patches = np.random.default_rng(0).random((7, 27)).astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 7, (4, 25))
    pictures = np.asarray(tokenizer.decode({'decoder': {'patches': patches}}, ids))
    np.testing.assert_array_equal(numpy_patches(pictures), patches[ids])


def test_fit_as_scikit_learn():
    """Centroids are the means of their patches, and not further from them than scikit-learn's.

    From as many random starts.
    """
    patches = np.random.default_rng(0).random((701, 27)).astype(np.float32)
    config, x, inertias, peers = kmeans.Config(**SIZES), numpy_normalized(patches), [], []
    for seed in range(3):
        key = jax.random.key(seed)
        params = jax.device_get(kmeans.fit(key, jnp.asarray(patches), config, iterations=100))
        centroids, pictures = params['encoder']['centroids'], params['decoder']['patches']
        nearest = sklearn.metrics.pairwise_distances_argmin(x, centroids)
        for i in range(7):
            np.testing.assert_allclose(centroids[i], x[nearest == i].mean(0), atol=1e-5)
            np.testing.assert_allclose(pictures[i], patches[nearest == i].mean(0), atol=1e-5)
        inertias.append(np.square(x - centroids[nearest]).sum())
        peer = sklearn.cluster.KMeans(7, init='random', n_init=1, random_state=seed).fit(x)
        peers.append(peer.inertia_)
    assert np.mean(inertias) < 1.01 * np.mean(peers)


def test_fit_revives_dead_centroids():
    """Two of three start at the same place: only a new start can separate them."""
    three = np.random.default_rng(0).random((3, 27)).astype(np.float32)
    patches = np.repeat(three, [400, 2, 2], axis=0)
    config = kmeans.Config(vocabulary=3, patch_size=3)
    params = kmeans.fit(jax.random.key(0), jnp.asarray(patches), config, iterations=200)
    centroids = np.asarray(params['encoder']['centroids'])
    nearest = sklearn.metrics.pairwise_distances_argmin(numpy_normalized(patches), centroids)
    assert len(np.unique(nearest)) == 3
    config = kmeans.Config(vocabulary=500, patch_size=3)
    with pytest.raises(RequestError, match='404 patches are too few for 500 centroids'):
        kmeans.fit(jax.random.key(0), jnp.asarray(patches), config)


def test_random_projection(images):
    tokenizer = make_tokenizer('random_projection', SIZES | {'code_width': 5}, 15)
    params = random_projection.draw(jax.random.key(3), tokenizer.config)
    chex.assert_trees_all_equal_shapes_and_dtypes(tokenizer.abstract(), params)
    projection = np.asarray(params['encoder']['projection'], np.float64)
    codes = np.asarray(params['encoder']['codes'], np.float64)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    assert projection.std() == pytest.approx(np.sqrt(2 / (27 + 5)), rel=0.2)  # Xavier
    y = numpy_normalized(numpy_patches(images)) @ projection
    directions = y / np.linalg.norm(y, axis=-1, keepdims=True)
    distances = np.linalg.norm(directions[:, :, None] - codes, axis=-1)
    np.testing.assert_array_equal(tokenizer.encode(params, images), distances.argmin(-1))
    with pytest.raises(RequestError, match='no decoder'):
        tokenizer.decode(params, np.zeros((1, 25), int))


@pytest.mark.parametrize('kind', ['kmeans', 'random_projection'])
def test_settings_that_are_refused(kind):
    for settings, size, message in (
        ({'vocabulary': 1}, 15, r'\[2, 65536\]'),
        ({'patch_size': 0}, 15, 'config.architecture.patch_size is 0'),
        ({'patch': 3}, 15, 'Did you mean patch_size'),
        ({'patch_size': 4}, 15, 'cannot cut pictures of 15'),
    ):
        with pytest.raises(RequestError, match=message):
            make_tokenizer(kind, settings, size)
    with pytest.raises(RequestError, match=r"kind='kmean' is unknown. Did you mean kmeans\?"):
        make_tokenizer('kmean', {}, 16)
