"""The fixed model whose features VQ-KD learns to give: a ViT, also CLIP's.

beit2/modeling_vqkd.py. A bias of keys, which such models have, is left out: softmax does not see
it. Shape legend: B images, P patches, D width, F width of the features.
"""

from flax import nnx
import jax.numpy as jnp

from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.initializers import TruncatedNormal
from beit_jax.models.layers import layer_norm, linear


class ClipEncoder(Encoder):
    """CLIP's: a norm before the first block, its own GELU."""

    def __init__(self, config: EncoderConfig, grid, *, dtype, rngs: nnx.Rngs, **options):
        super().__init__(config, grid, dtype=dtype, rngs=rngs, **options)
        self.pre_norm = layer_norm(config.width, config.norm_eps, dtype=dtype, rngs=rngs)
        for block in self.blocks.values():
            block.mlp.quick = True

    def _embed(self, images_BHWC, mask_BP=None):
        x_BND, bias_HNN = super()._embed(images_BHWC, mask_BP)
        return self.pre_norm(x_BND), bias_HNN


class Teacher(nnx.Module):
    """An encoder, a norm on its patches, and for CLIP the projection of its features."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        *,
        clip_features: int = 0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`clip_features`: F of a CLIP; 0: it is none, and F = D."""
        kind, made = ClipEncoder if clip_features else Encoder, {'dtype': dtype, 'rngs': rngs}
        self.encoder = kind(config, grid, masked=False, **made)
        self.norm = layer_norm(config.width, config.norm_eps, **made)
        init = TruncatedNormal(0.02, 2.0)
        self.projection = (
            linear(config.width, clip_features, init, use_bias=False, **made)
            if clip_features
            else None
        )

    def __call__(self, images_BHWC):
        """Normalised pixels, float [B, height, width, channels] -> float32 [B, P, F]."""
        x_BPD = self.norm(self.encoder(images_BHWC)[:, 1:])
        return (self.projection(x_BPD) if self.projection else x_BPD).astype(jnp.float32)
