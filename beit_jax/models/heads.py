"""Heads on the encoder: patches (pre-training), classes (fine-tuning), linear probes.

That of segmentation is in `upernet`. Shape legend: B images, N tokens (CLS first), P patches, K
slots, D width, L layers, C classes, V outputs a patch: the vocabulary of its token, or its pixel
values.
"""

from flax import nnx
import jax.numpy as jnp

from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.initializers import Constant, TruncatedNormal, parameter
from beit_jax.models.layers import layer_norm, linear

POOLINGS = ('mean', 'cls')
KINDS = ('cls', 'mean', 'both')  # what a linear probe reads


class PatchHead(nnx.Module):
    """Last norm and linear layer to tokens or pixels (modeling_pretrain.py: norm, lm_head)."""

    def __init__(self, config: EncoderConfig, outputs: int, *, dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(config.width, config.norm_eps, dtype=dtype, rngs=rngs)
        init = TruncatedNormal(config.init_std, config.init_std)
        self.projection = linear(config.width, outputs, init, dtype=dtype, rngs=rngs)

    def __call__(self, x_BKD):
        """[B, K, D] -> float32 [B, K, V]."""
        return self.projection(self.norm(x_BKD)).astype(jnp.float32)


class MaskedImageModel(nnx.Module):
    """Encoder and head of patches: what is pre-trained."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        outputs: int,
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`grid`: rows and columns of patches; `outputs`: V."""
        self.encoder = Encoder(config, grid, dtype=dtype, rngs=rngs)
        self.head = PatchHead(config, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC, mask_BP, slots_BK, *, keys_B=None):
        """Logits of the tokens (or pixels) at the slots: the large head runs on no other patch.

        Args:
          images_BHWC: normalised pixels, float [B, height, width, channels].
          mask_BP: bool [B, P], the patches that are hidden.
          slots_BK: int32 [B, K], the patches that are predicted.
          keys_B: see `Encoder`.

        Returns:
          float32 [B, K, V].
        """
        x_BND = self.encoder(images_BHWC, mask_BP, keys_B=keys_B)
        return self.head(jnp.take_along_axis(x_BND[:, 1:], slots_BK[..., None], axis=1))


class ClassificationHead(nnx.Module):
    """Mean of the patches (or CLS), norm, linear layer to the classes, in float32
    (modeling_finetune.py: fc_norm, head)."""

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        pooling: str,
        norm_eps: float,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """`num_classes`: 0 leaves the linear layer out; `scale`: of its initial kernel."""
        self.pooling, options = pooling, {'dtype': jnp.float32, 'rngs': rngs}
        self.norm = layer_norm(width, norm_eps, **options)
        init = TruncatedNormal(0.02 * scale, 2.0 * scale)
        self.classes = linear(width, num_classes, init, **options) if num_classes else None

    def __call__(self, x_BND):
        """[B, N, D] -> logits float32 [B, C]; without classes what they read, [B, D]."""
        x_BD = self.norm(pool(x_BND, self.pooling))
        return x_BD if self.classes is None else self.classes(x_BD)


class Classifier(nnx.Module):
    """Encoder and classification head: what is fine-tuned."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        num_classes: int,
        *,
        pooling: str = 'mean',
        head_scale: float = 1.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`grid`: rows and columns of patches; `num_classes`, `head_scale`: see the head."""
        self.encoder = Encoder(config, grid, masked=False, dtype=dtype, rngs=rngs)
        self.head = ClassificationHead(
            config.width,
            num_classes,
            pooling=pooling,
            norm_eps=config.norm_eps,
            scale=head_scale,
            rngs=rngs,
        )

    def __call__(self, images_BHWC, *, keys_B=None):
        """Normalised pixels, float [B, height, width, channels] -> logits float32 [B, C].

        `keys_B`: see `Encoder`.
        """
        return self.head(self.encoder(images_BHWC, keys_B=keys_B))


def pool(x_BND, pooling: str):
    """[..., N, D] -> float32 [..., D]: the mean of the patches ('mean') or CLS ('cls')."""
    if pooling == 'mean':
        return jnp.mean(x_BND[..., 1:, :], axis=-2, dtype=jnp.float32)
    return x_BND[..., 0, :].astype(jnp.float32)


def pool_both(x_BND) -> dict:
    """{'cls', 'mean'}: float32 [..., D] each."""
    return {name: pool(x_BND, name) for name in ('cls', 'mean')}


class LayerProbes(nnx.Module):
    """A linear head on each layer for each of KINDS (run_linear_eval.py: weights N(0, 0.01)).

    They share nothing but their input.
    """

    def __init__(self, layers: int, width: int, num_classes: int, *, rngs: nnx.Rngs):
        init, zeros = TruncatedNormal(0.01, 1.0), Constant(0.0)
        for kind in KINDS:
            inputs = 2 * width if kind == 'both' else width
            head = nnx.Dict(
                kernel=parameter(init, (layers, inputs, num_classes), rngs),
                bias=parameter(zeros, (layers, num_classes), rngs),
            )
            setattr(self, kind, head)

    def __call__(self, cls_BLD, mean_BLD):
        """Features float32 [B, L, D] -> {kind: logits float32 [B, L, C]}."""
        both_BLD, logits = jnp.concatenate([cls_BLD, mean_BLD], axis=-1), {}
        for kind, x_BLD in {'cls': cls_BLD, 'mean': mean_BLD, 'both': both_BLD}.items():
            head = getattr(self, kind)
            logits[kind] = jnp.einsum('bld,ldc->blc', x_BLD, head.kernel[...]) + head.bias[...]
        return logits
