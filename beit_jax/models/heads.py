"""Heads on the encoder. Shape legend: B images, N tokens, P patches, K masked slots, D width, V vocabulary."""
from flax import nnx
import jax.numpy as jnp

from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.layers import TruncatedNormal, layer_norm, linear


class MaskedTokenHead(nnx.Module):
    """The last norm and a linear layer to the vocabulary (modeling_pretrain.py: norm, lm_head)."""

    def __init__(self, width: int, vocabulary: int, *, dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.projection = linear(width, vocabulary, TruncatedNormal(), dtype=dtype, rngs=rngs)

    def __call__(self, x_BKD):
        """[B, K, D] -> logits float32 [B, K, V]."""
        return self.projection(self.norm(x_BKD)).astype(jnp.float32)


class MaskedImageModel(nnx.Module):
    """Encoder and masked-token head: what is pre-trained."""

    def __init__(self, config: EncoderConfig, grid: tuple[int, int], vocabulary: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.encoder = Encoder(config, grid, dtype=dtype, rngs=rngs)
        self.head = MaskedTokenHead(config.width, vocabulary, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC, mask_BP, slots_BK, *, keys_B=None):
        """Logits of the tokens at the slots only, so that the large head never runs on patches whose token nobody asks for.

        Args:
          images_BHWC: normalised pixels, float [B, height, width, 3].
          mask_BP: bool [B, P], the patches that are hidden.
          slots_BK: int32 [B, K], the patches whose tokens are predicted.
          keys_B: see `Encoder`.

        Returns:
          float32 [B, K, V].
        """
        x_BND = self.encoder(images_BHWC, mask_BP, keys_B=keys_B)
        return self.head(jnp.take_along_axis(x_BND[:, 1:], slots_BK[..., None], axis=1))
