"""K-means on normalised patches, the simplest tokenizer that is known to work on small data.

A token says which of V typical patterns a patch has, whatever its brightness and contrast. Shape
legend: B images, H W their sides in pixels, C channels, f patch side, P patches, D = C f f values
of a patch, N patches to learn from, V vocabulary.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.models.patches import patchify, unpatchify
from beit_jax.models.tokenizers import Vocabulary, dtype_and_precision, square_grid, token_ids
from beit_jax.settings.intervals import Count, Positive

CHUNK = 4096  # patches whose distances to all centroids are held at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vocabulary: Vocabulary = 8192
    patch_size: Count = 16  # pixels
    channels: Count = 3
    # added to a patch's contrast, in units of 0.25 of the pixel range: noise is not blown up to a
    # pattern
    contrast_floor: Positive = 0.6


def normalize_patches(patches, contrast_floor: float):
    """Pixels in [0, 1], [..., D] -> the same without each patch's mean and most of its contrast."""
    centred = (patches - jnp.mean(patches, axis=-1, keepdims=True)) / 0.25
    contrast = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
    return centred / (contrast + contrast_floor)


def product(x, y, precision: str):
    """Matrix product of float32 arrays, float32; `precision`: of `tokenizers.PRECISIONS`."""
    dtype, passes = dtype_and_precision(precision).values()
    return jnp.matmul(
        x.astype(dtype), y.astype(dtype), precision=passes, preferred_element_type=jnp.float32
    )


def nearest(x, centroids_VD, precision: str):
    """[..., D] -> int32 [...], the nearest centroid."""
    products = product(x, centroids_VD.T, precision)
    scores = products - 0.5 * jnp.sum(jnp.square(centroids_VD), axis=-1)
    return token_ids(scores)


def fit(key, patches_ND, config: Config, iterations: int = 30, watched: Callable = iter) -> dict:
    """Lloyd's algorithm from random patches.

    A centroid that nobody is nearest to starts anew at a random patch.

    Args:
      key: for the random patches.
      patches_ND: pixels in [0, 1], float32; N at least the vocabulary.
      config: the architecture.
      iterations: of the algorithm.
      watched: a list -> the same, one by one, as iterations are done (a bar).

    Returns:
      the parameters of a `Tokenizer`.
    """
    check(
        len(patches_ND) >= config.vocabulary,
        f'{len(patches_ND)} patches are too few for {config.vocabulary} centroids: read more '
        'pictures.',
    )
    x_ND = normalize_patches(patches_ND, config.contrast_floor)
    start_key, *keys = jax.random.split(key, iterations + 1)
    centroids_VD = jax.random.choice(start_key, x_ND, (config.vocabulary,), replace=False)
    for anew_key in watched(keys):
        sums_VD, counts_V = sum_by_centroid(x_ND, x_ND, centroids_VD)
        anew_VD = jax.random.choice(anew_key, x_ND, (config.vocabulary,), replace=False)
        # else all iterations count as done while the first one runs
        centroids_VD = jax.block_until_ready(_means(sums_VD, counts_V, anew_VD))
    pictures_VD = _means(*sum_by_centroid(x_ND, patches_ND, centroids_VD), 0.5)
    return {'encoder': {'centroids': centroids_VD}, 'decoder': {'patches': pictures_VD}}


@jax.jit
def sum_by_centroid(x_ND, values_ND, centroids_VD):
    """(sums of `values` of the x nearest to each centroid [V, D], their counts [V])."""
    find = functools.partial(nearest, centroids_VD=centroids_VD, precision='float32')
    ids_N = jax.lax.map(find, x_ND, batch_size=CHUNK)
    zeros_VD = jnp.zeros((len(centroids_VD), values_ND.shape[1]))
    return zeros_VD.at[ids_N].add(values_ND), jnp.zeros(len(centroids_VD)).at[ids_N].add(1)


def _means(sums_VD, counts_V, otherwise):
    return jnp.where(counts_V[:, None] > 0, sums_VD / jnp.maximum(counts_V, 1)[:, None], otherwise)


class Tokenizer:
    """The decoder draws the mean of all patches of a token, brightness and colour included."""

    resampling, decodes = 'lanczos3', 'pixels'

    def __init__(self, config: Config, image_size: int, precision: str = 'float32'):
        self.config, self.image_size = config, image_size
        self.vocabulary, self.factor = config.vocabulary, config.patch_size
        self.channels = config.channels
        floor = config.contrast_floor / 4
        self.pixels = f'(x - mean of the patch) / (deviation of the patch + {floor:g})'
        self._precision = precision

    def abstract(self):
        array = jax.ShapeDtypeStruct((self.vocabulary, self.channels * self.factor**2), jnp.float32)
        return {'encoder': {'centroids': array}, 'decoder': {'patches': array}}

    def encode(self, params, images_BHWC):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        x_BPD = normalize_patches(patchify(images_BHWC, self.factor), self.config.contrast_floor)
        return nearest(x_BPD, params['encoder']['centroids'], self._precision)

    def decode(self, params, ids_BP, grid=None):
        """Gives pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        patches_BPD = params['decoder']['patches'][ids_BP]
        return unpatchify(patches_BPD, grid or square_grid(ids_BP), self.channels)
