"""Tokenizers of normalised patches, against scikit-learn and NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics

from beit_jax.errors import RequestError
from beit_jax.models.patches import patchify
from beit_jax.models.tokenizers import kmeans, make_tokenizer, random_projection

SIZES = {'vocabulary': 7, 'patch_size': 3}


@pytest.fixture
def images():
    return np.random.default_rng(0).random((5, 15, 15, 3), np.float32)


def numpy_patches(images):
    """[B, 25, 27], by slicing."""
    return np.stack(
        [
            images[:, y : y + 3, x : x + 3].reshape(len(images), -1)
            for y in range(0, 15, 3)
            for x in range(0, 15, 3)
        ],
        axis=1,
    )


def numpy_normalized(patches):
    x = (patches - 0.5) / 0.25
    x = x - x.mean(-1, keepdims=True)
    return x / (x.std(-1, keepdims=True) + 0.6)


def test_patches(images):
    np.testing.assert_array_equal(patchify(images, 3), numpy_patches(images))
    np.testing.assert_allclose(
        kmeans.normalize_patches(numpy_patches(images), 0.6),
        numpy_normalized(numpy_patches(images)),
        atol=1e-5,
    )
    brighter = kmeans.normalize_patches(numpy_patches(images * 0.9 + 0.1), 1e-6)
    np.testing.assert_allclose(
        brighter, kmeans.normalize_patches(numpy_patches(images), 1e-6), atol=1e-3
    )


def test_kmeans_tokens_are_the_nearest_centroids(images):
    tokenizer, random = make_tokenizer('kmeans', SIZES, 15), np.random.default_rng(1)
    params = {'encoder': {'centroids': random.normal(size=(7, 27)).astype(np.float32)}}
    expected = sklearn.metrics.pairwise_distances_argmin(
        numpy_normalized(numpy_patches(images)).reshape(-1, 27), params['encoder']['centroids']
    )
    ids = tokenizer.encode(params, images)
    np.testing.assert_array_equal(ids, expected.reshape(5, 25))
    assert ids.dtype == jnp.int32 and len(np.unique(ids)) == 7


def test_kmeans_draws_its_patches():
    tokenizer = make_tokenizer('kmeans', SIZES, 15)
    patches = np.random.default_rng(0).random((7, 27)).astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 7, (4, 25))
    np.testing.assert_array_equal(
        numpy_patches(np.asarray(tokenizer.decode({'decoder': {'patches': patches}}, ids))),
        patches[ids],
    )


def test_fit_as_scikit_learn():
    """Centroids are the means of their patches, and the inertia is that of scikit-learn from as
    many random starts."""
    patches, config = (
        np.random.default_rng(0).random((701, 27)).astype(np.float32),
        kmeans.Config(**SIZES),
    )
    x, inertias = numpy_normalized(patches), []
    for seed in range(3):
        params = jax.device_get(
            kmeans.fit(jax.random.key(seed), jnp.asarray(patches), config, iterations=100)
        )
        centroids, nearest = (
            params['encoder']['centroids'],
            sklearn.metrics.pairwise_distances_argmin(x, params['encoder']['centroids']),
        )
        np.testing.assert_allclose(
            centroids, [x[nearest == i].mean(0) for i in range(7)], atol=1e-5
        )
        np.testing.assert_allclose(
            params['decoder']['patches'],
            [patches[nearest == i].mean(0) for i in range(7)],
            atol=1e-5,
        )
        inertias.append(np.square(x - centroids[nearest]).sum())
    peers = [
        sklearn.cluster.KMeans(7, init='random', n_init=1, random_state=seed).fit(x).inertia_
        for seed in range(3)
    ]
    assert np.mean(inertias) < 1.01 * np.mean(peers)


def test_fit_revives_dead_centroids():
    """Two of three start at the same place: only a new start can separate them."""
    patches = np.repeat(np.random.default_rng(0).random((3, 27)), [400, 2, 2], axis=0).astype(
        np.float32
    )
    params = kmeans.fit(
        jax.random.key(0),
        jnp.asarray(patches),
        kmeans.Config(vocabulary=3, patch_size=3),
        iterations=200,
    )
    nearest = sklearn.metrics.pairwise_distances_argmin(
        numpy_normalized(patches), np.asarray(params['encoder']['centroids'])
    )
    assert len(np.unique(nearest)) == 3
    with pytest.raises(RequestError, match='404 patches are too few for 500 centroids'):
        kmeans.fit(
            jax.random.key(0), jnp.asarray(patches), kmeans.Config(vocabulary=500, patch_size=3)
        )


def test_random_projection(images):
    tokenizer = make_tokenizer('random_projection', SIZES | {'code_width': 5}, 15)
    params = random_projection.draw(jax.random.key(3), tokenizer.config)
    chex.assert_trees_all_equal_shapes_and_dtypes(tokenizer.abstract(), params)
    projection, codes = (
        np.asarray(params['encoder'][name], np.float64) for name in ('projection', 'codes')
    )
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    assert projection.std() == pytest.approx(np.sqrt(2 / (27 + 5)), rel=0.2)  # Xavier
    y = numpy_normalized(numpy_patches(images)) @ projection
    distances = np.linalg.norm(
        (y / np.linalg.norm(y, axis=-1, keepdims=True))[:, :, None] - codes, axis=-1
    )
    np.testing.assert_array_equal(tokenizer.encode(params, images), distances.argmin(-1))
    with pytest.raises(RequestError, match='no decoder'):
        tokenizer.decode(params, np.zeros((1, 25), int))


@pytest.mark.parametrize('kind', ['kmeans', 'random_projection'])
def test_settings_that_are_refused(kind):
    for settings, size, message in (
        ({'vocabulary': 1}, 15, '2 to 65536'),
        ({'patch_size': 0}, 15, 'must be positive'),
        ({'patch': 3}, 15, 'Did you mean patch_size'),
        ({'patch_size': 4}, 15, 'cannot cut pictures of 15'),
    ):
        with pytest.raises(RequestError, match=message):
            make_tokenizer(kind, settings, size)
    with pytest.raises(RequestError, match=r"kind='kmean' is unknown. Did you mean kmeans\?"):
        make_tokenizer('kmean', {}, 16)
