"""What pre-training knows of a tokenizer: pictures to token ids, and, if it has a decoder, ids to pictures.

Shape legend: B images, S side in pixels, P tokens in reading order, V vocabulary.
"""
from typing import Any, Protocol

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.models.dvae import DVAEConfig, DVAEDecoder, DVAEEncoder, map_pixels, unmap_pixels


class Tokenizer(Protocol):
    """A fixed map from pictures to grids of tokens. `params` is a nested dict of arrays, passed in so that it can be placed on a mesh."""
    vocabulary: int
    image_size: int  # side of the picture it was trained on
    factor: int  # pixels per token along each side

    def encode(self, params: Any, images_BSS3: jax.Array) -> jax.Array:
        """RGB in [0, 1], float32 [B, S, S, 3] -> ids int32 [B, P]."""

    def decode(self, params: Any, ids_BP: jax.Array) -> jax.Array:
        """ids int [B, P] of a square grid -> RGB in [0, 1], float32 [B, S, S, 3]."""


class DVAETokenizer:
    """A discrete VAE as a tokenizer: the most likely code of each cell."""

    def __init__(self, config: DVAEConfig, image_size: int, *, dtype=jnp.float32):
        self.config, self.image_size = config, image_size
        self.vocabulary, self.factor = config.vocabulary, config.factor
        self._encoder = nnx.graphdef(nnx.eval_shape(lambda: DVAEEncoder(config, dtype=dtype, rngs=nnx.Rngs(0))))
        self._decoder = nnx.graphdef(nnx.eval_shape(lambda: DVAEDecoder(config, dtype=dtype, rngs=nnx.Rngs(0))))

    def encode(self, params, images_BSS3):
        logits_BhwV = nnx.merge(self._encoder, params['encoder'])(map_pixels(images_BSS3))
        return jnp.argmax(logits_BhwV, axis=-1).reshape(images_BSS3.shape[0], -1).astype(jnp.int32)

    def decode(self, params, ids_BP):
        side = round(ids_BP.shape[1] ** 0.5)
        codes_BhwV = jax.nn.one_hot(ids_BP.reshape(-1, side, side), self.vocabulary)
        return unmap_pixels(jax.nn.sigmoid(nnx.merge(self._decoder, params['decoder'])(codes_BhwV)[..., :3]))
