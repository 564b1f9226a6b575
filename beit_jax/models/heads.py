"""Heads on the encoder: patches (pre-training), classes (fine-tuning), linear probes.

That of segmentation is in `upernet`. Shape legend: B images, N tokens (CLS first), P patches, K
slots, D width, L layers, C classes, V outputs a patch: the vocabulary of its token, or its pixel
values.
"""

import dataclasses
from typing import Annotated

from flax import nnx
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.models.encoder import Encoder, EncoderConfig, make_blocks
from beit_jax.models.initializers import Constant, TruncatedNormal, parameter
from beit_jax.models.layers import layer_norm, linear
from beit_jax.settings.intervals import Count, Interval

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClsHeadConfig:
    """What pre-trains CLS (arXiv 2208.06366, section 3.2): the last layer's CLS and the patches of
    an early layer go through a few more blocks, and tokens are predicted from these too."""

    layers: Annotated[int, Interval(0, 16)] = 0  # of those blocks; 0: none of this
    early: Count = 9  # after how many blocks of the encoder the patches are taken
    shared: bool = True  # by the norm and the linear layer of the other head, or by others

    def check_depth(self, depth: int) -> None:
        """Raises RequestError where an encoder of `depth` blocks is too short."""
        room = depth - self.layers
        remedy = f'lower config.cls_head.early to {room} or less'
        if room < 1:
            remedy = f'set config.cls_head.layers={depth - 1} and config.cls_head.early=1'
        check(
            self.layers == 0 or self.early <= room,
            f'config.cls_head.early={self.early} and {self.layers} layers are beyond the '
            f'{depth} blocks of the encoder: {remedy}.',
        )


class ClsHead(nnx.Module):
    """More blocks behind an early layer and, where it is not shared, a head of their own."""

    def __init__(
        self, settings: ClsHeadConfig, config: EncoderConfig, grid, outputs: int, *, dtype, rngs
    ):
        self.early = settings.early
        init = TruncatedNormal(config.init_std, config.init_std)
        depths = range(settings.early, settings.early + settings.layers)
        self.layers = make_blocks(config, grid, depths, init, dtype=dtype, rngs=rngs)
        self.head = None if settings.shared else PatchHead(config, outputs, dtype=dtype, rngs=rngs)


class MaskedImageModel(nnx.Module):
    """Encoder and head of patches: what is pre-trained."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        outputs: int,
        *,
        cls_head: ClsHeadConfig = ClsHeadConfig(),
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`grid`: rows and columns of patches; `outputs`: V."""
        made = {'dtype': dtype, 'rngs': rngs}
        self.encoder = Encoder(config, grid, **made)
        self.head = PatchHead(config, outputs, **made)
        self.cls_head = (
            ClsHead(cls_head, config, grid, outputs, **made) if cls_head.layers else None
        )

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
        return self.head(_at(x_BND, slots_BK))

    def both(self, images_BHWC, mask_BP, slots_BK, *, keys_B=None):
        """`__call__`, and the logits of `cls_head`, float32 [B, K, V]: of a model that has one."""
        more, early = self.cls_head, self.cls_head.early
        found = self.encoder.with_early(images_BHWC, mask_BP, early, more.layers, keys_B=keys_B)
        last_BKD, more_BKD = (_at(x_BND, slots_BK) for x_BND in found)
        return self.head(last_BKD), (more.head or self.head)(more_BKD)


def _at(x_BND, slots_BK):
    """The patches at the slots, [B, K, D]."""
    return jnp.take_along_axis(x_BND[:, 1:], slots_BK[..., None], axis=1)


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
