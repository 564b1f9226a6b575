"""A tokenizer without training: random directions, the cheapest baseline; it has no decoder.

A token is the nearest of V random directions to a random projection of the patch (BEST-RQ, arXiv
2202.01855, section 3.1). Shape legend: B images, S side in pixels, P patches, D
values of a patch, C width of a code, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from beit_jax.errors import RequestError
from beit_jax.models.patches import patchify
from beit_jax.models.tokenizers import kmeans
from beit_jax.settings.intervals import Width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(kmeans.Config):
    code_width: Width = 16


def draw(key, config: Config) -> dict:
    """The parameters of a `Tokenizer`: a Xavier-uniform projection and codes on the unit sphere."""
    projection_key, code_key = jax.random.split(key)
    xavier, inputs = jax.nn.initializers.xavier_uniform(), config.channels * config.patch_size**2
    projection_DC = xavier(projection_key, (inputs, config.code_width))
    codes_VC = jax.random.normal(code_key, (config.vocabulary, config.code_width))
    codes_VC = codes_VC / jnp.linalg.norm(codes_VC, axis=-1, keepdims=True)
    return {'encoder': {'projection': projection_DC, 'codes': codes_VC}}


class Tokenizer(kmeans.Tokenizer):
    """Patches are normalised as for k-means; the direction of the projection alone counts."""

    def abstract(self):
        return jax.eval_shape(lambda: draw(jax.random.key(0), self.config))

    def encode(self, params, images_BHWC):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        patches_BPD = patchify(images_BHWC, self.factor)
        x_BPD = kmeans.normalize_patches(patches_BPD, self.config.contrast_floor)
        y_BPC = kmeans.product(x_BPD, params['encoder']['projection'], self._precision)
        # codes have length 1: the length of y does not matter
        return kmeans.nearest(y_BPC, params['encoder']['codes'], self._precision)

    def decode(self, params, ids_BP, grid=None):
        raise RequestError('a random_projection tokenizer has no decoder: it cannot draw pictures.')
