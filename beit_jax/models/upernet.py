"""UPerNet on BEiT, or a linear layer: a class for each pixel.

arXiv 1807.10221; unilm: semantic_segmentation/backbone/beit.py; mmsegmentation: UPerHead, FCNHead.
Four blocks of the encoder are tapped and resized to a pyramid of 4, 2, 1 and 1/2 cells a patch
along a side; the last level is pooled to a few cells and back, the levels are added from the top
down, fused, and classified at the finest one. Shape legend: B images, N tokens (CLS first), h w
rows and columns of a level, D width of the encoder, C classes or any channels.
"""

import dataclasses
import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import check, one_of
from beit_jax.models.convolutions import (
    BatchNorm,
    ConvNorm,
    Deconvolution,
    convolution,
    is_statistic,
)
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.gelu import gelu
from beit_jax.models.initializers import TruncatedNormal
from beit_jax.models.resize import adaptive_pool, resize
from beit_jax.settings.intervals import Interval, PositiveShare, ShareBelow1

LEVELS = 4
KINDS = ('upernet', 'linear')
# set these keys apart from that of stochastic depth
_DROPOUT, _AUXILIARY_DROPOUT = 0x64726F70, 0x61757864


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig:
    """The head; the defaults are the official ones. A linear one takes `kind`, `taps`, `dropout`
    and the norm's numbers, no others."""

    # upernet | linear: batch norm and a linear layer on each patch of the taps side by side
    kind: str = 'upernet'
    # four blocks from 0 (-1: what the first one gets); (): 3, 5, 7, 11 of 12, at the same shares of
    # other depths; linear: any number, (): the last one
    taps: tuple[Annotated[int, Interval(-1, 200)], ...] = ()
    channels: Annotated[int, Interval(0, 2**12)] = 0  # 0: the width of the encoder
    # rows and columns that the last level is pooled to
    pool_scales: tuple[Annotated[int, Interval(1, 64)], ...] = (1, 2, 3, 6)
    auxiliary_channels: Annotated[int, Interval(0, 2**12)] = 256  # 0: no auxiliary head
    # the level, from 0, that the auxiliary head reads
    auxiliary_tap: Annotated[int, Interval(0, LEVELS - 1)] = 2
    dropout: ShareBelow1 = 0.1  # of whole channels, before both classifiers
    norm_eps: PositiveShare = 1e-5  # of the batch norms
    # share of a batch in the new running statistics, as in torch
    norm_momentum: PositiveShare = 0.1

    def __post_init__(self):
        one_of('config.head.kind', self.kind, KINDS)
        check(
            self.kind == 'linear' or len(self.taps) in (0, LEVELS),
            f'config.head.taps has {len(self.taps)} blocks: give {LEVELS}, or none for the usual '
            'ones.',
        )

    def fitted(self, encoder: EncoderConfig) -> 'UperNetConfig':
        """The same with what follows from the encoder filled in.

        Raises:
          RequestError: it has no such blocks.
        """
        depth, linear = encoder.depth, self.kind == 'linear'
        shares = (1,) if linear else (1 / 3, 1 / 2, 2 / 3, 1)
        taps = self.taps or tuple(max(round(depth * share) - 1, 0) for share in shares)
        check(
            all(-1 <= tap < depth for tap in taps),
            f'config.head.taps is {taps}: the encoder has blocks 0 to {depth - 1}.',
        )
        return dataclasses.replace(self, taps=taps, channels=self.channels or encoder.width)


def _classify(classifier: nnx.Conv, x_BhwC, keys_B, dropout: float, label: int):
    """Logits float32 [B, h, w, C]; with keys, one an image, whole channels are dropped before
    (torch's Dropout2d)."""

    def keep(key):
        return jax.random.bernoulli(jax.random.fold_in(key, label), 1 - dropout, x_BhwC.shape[3:])

    x_BhwC = x_BhwC.astype(jnp.float32)
    if keys_B is not None and dropout:
        x_BhwC = x_BhwC * (jax.vmap(keep)(keys_B) / (1 - dropout))[:, None, None]
    return classifier(x_BhwC)


def _classifier(inputs: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Conv:
    init = TruncatedNormal(0.01, math.inf)
    return convolution(inputs, num_classes, 1, init, dtype=jnp.float32, use_bias=True, rngs=rngs)


class LinearHead(nnx.Module):
    """What a probe of dense features has: the taps of a patch side by side, batch norm, for they
    are no norm's, and a linear layer."""

    def __init__(
        self, config: UperNetConfig, width: int, num_classes: int, *, dtype, rngs: nnx.Rngs
    ):
        """As of `UperNetHead`; `dtype` has no part, all is float32."""
        self.config, inputs = config, width * len(config.taps)
        norm = {'eps': config.norm_eps, 'momentum': config.norm_momentum}
        self.norm = BatchNorm(inputs, **norm, rngs=rngs)
        self.classifier = _classifier(inputs, num_classes, rngs)

    def __call__(self, taps_BhwD, keys_B, train: bool):
        """As `UperNetHead`: (logits float32 [B, h, w, C], None)."""
        x_BhwD = jnp.concatenate([tap.astype(jnp.float32) for tap in taps_BhwD], axis=-1)
        normed_BhwD = self.norm(x_BhwD, train)
        dropout = self.config.dropout
        return _classify(self.classifier, normed_BhwD, keys_B, dropout, _DROPOUT), None


class UperNetHead(nnx.Module):
    """What the four taps become."""

    def __init__(
        self, config: UperNetConfig, width: int, num_classes: int, *, dtype, rngs: nnx.Rngs
    ):
        """`config`: a fitted one; `width`: of the encoder."""
        self.config, channels, options = config, config.channels, {'dtype': dtype, 'rngs': rngs}
        norm = {'eps': config.norm_eps, 'momentum': config.norm_momentum}

        def layer(inputs, outputs, size):
            return ConvNorm(inputs, outputs, size, norm=norm, **options)

        def layers(number, inputs, size):
            return nnx.Dict({str(i): layer(inputs, channels, size) for i in range(number)})

        def classifier(inputs):
            return _classifier(inputs, num_classes, rngs)

        self.times4 = nnx.Dict(
            deconv1=Deconvolution(width, **options),
            norm=BatchNorm(width, **norm, rngs=rngs),
            deconv2=Deconvolution(width, **options),
        )
        self.times2 = nnx.Dict(deconv=Deconvolution(width, **options))
        self.pools = layers(len(config.pool_scales), width, 1)
        self.fuse_pools = layer(width + len(config.pool_scales) * channels, channels, 3)
        self.laterals, self.outputs = layers(LEVELS - 1, width, 1), layers(LEVELS - 1, channels, 3)
        self.fuse = layer(LEVELS * channels, channels, 3)
        self.classifier = classifier(channels)
        self.auxiliary = (
            nnx.Dict(
                layer=layer(width, config.auxiliary_channels, 3),
                classifier=classifier(config.auxiliary_channels),
            )
            if config.auxiliary_channels
            else None
        )

    def __call__(self, taps_BhwD, keys_B, train: bool):
        """Taps to classes.

        Args:
          taps_BhwD: four of [B, h, w, D].
          keys_B: a key an image for dropout, or None.
          train: see `Segmenter`.

        Returns:
          (logits float32 [B, 4 h, 4 w, C], those of the auxiliary head, of its level's size, or
            None).
        """
        config, levels = self.config, self._pyramid(taps_BhwD, train)
        laterals = [layer(level, train) for layer, level in zip(self.laterals.values(), levels)]
        laterals.append(self._pool(levels[-1], train))
        for i in reversed(range(LEVELS - 1)):
            laterals[i] += resize(laterals[i + 1], laterals[i].shape[1:3])
        outputs = [layer(level, train) for layer, level in zip(self.outputs.values(), laterals)]
        finest, *coarser = [*outputs, laterals[-1]]
        resized = [resize(level, finest.shape[1:3]) for level in coarser]
        fused = self.fuse(jnp.concatenate([finest, *resized], axis=-1), train)
        logits = _classify(self.classifier, fused, keys_B, config.dropout, _DROPOUT)
        if self.auxiliary is None:
            return logits, None
        layer, classifier = self.auxiliary['layer'], self.auxiliary['classifier']
        hidden = layer(levels[config.auxiliary_tap], train)
        return logits, _classify(classifier, hidden, keys_B, config.dropout, _AUXILIARY_DROPOUT)

    def _pyramid(self, taps_BhwD, train):
        """The taps at 4, 2, 1 and 1/2 times their rows and columns."""
        first, second, third, last = taps_BhwD
        first = self.times4['norm'](self.times4['deconv1'](first), train)
        first = self.times4['deconv2'](gelu(first))
        # not jnp.max, whose gradient divides by how many equal it: none does where the compiler
        # rounds otherwise the second time
        last = nnx.max_pool(last, (2, 2), strides=(2, 2))  # the last of an odd number is left out
        return [first, self.times2['deconv'](second), third, last]

    def _pool(self, x_BhwD, train):
        """Pyramid pooling (PSPNet): the level beside its means at several scales, fused."""
        levels = [x_BhwD]
        for layer, scale in zip(self.pools.values(), self.config.pool_scales):
            pooled = layer(adaptive_pool(x_BhwD, scale), train)
            levels.append(resize(pooled, x_BhwD.shape[1:3]))
        return self.fuse_pools(jnp.concatenate(levels, axis=-1), train)


class Segmenter(nnx.Module):
    """Encoder and UPerNet, or a linear head: a class for each pixel."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        num_classes: int,
        *,
        head: UperNetConfig = UperNetConfig(),
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`grid`: rows and columns of patches, of UPerNet at least 2 each.

        Raises:
          RequestError: a smaller grid, or taps that the encoder does not have.
        """
        check(
            min(grid) > 1 or head.kind == 'linear',
            f'{grid[0]} x {grid[1]} patches are too few for a pyramid, use 2 x 2 or more: '
            'change config.data.image_size or config.model.patch_size.',
        )
        head = head.fitted(config)
        self.encoder = Encoder(config, grid, masked=False, dtype=dtype, rngs=rngs)
        kind = LinearHead if head.kind == 'linear' else UperNetHead
        self.head = kind(head, config.width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC, *, keys_B=None, train: bool = False):
        """Classifies pixels, four a patch along a side (a linear head: one): `resize` brings the
        logits to all of them.

        Args:
          images_BHWC: normalised pixels, float [B, height, width, 3], of the grid's size.
          keys_B: a key an image for stochastic depth and dropout, or None.
          train: batch norm uses the statistics of this batch, over all devices, and not the running
            ones. This module then holds the new running statistics, so that it must have been
            merged in the same trace.

        Returns:
          (logits float32 [B, 4 rows, 4 columns, C], of a linear head [B, rows, columns, C]; those
            of the auxiliary head [B, rows, columns, C] (its level's size) or None; the new running
            statistics as the sub-tree of the parameters that they replace, {} where `train` is
            false).
        """
        taps = self.encoder.taps(images_BHWC, self.head.config.taps, keys_B=keys_B)
        shape = images_BHWC.shape[0], *self.encoder.grid_shape, -1
        taps_BhwD = [x_BND[:, 1:].reshape(shape) for x_BND in taps]
        logits, auxiliary = self.head(taps_BhwD, keys_B, train)
        return logits, auxiliary, nnx.to_pure_dict(nnx.state(self, is_statistic)) if train else {}
