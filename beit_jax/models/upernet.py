"""UPerNet on BEiT: a class for each pixel (arXiv 1807.10221; unilm:
semantic_segmentation/backbone/beit.py; mmsegmentation: UPerHead, FCNHead).

Four blocks of the encoder are tapped and resized to a pyramid of 4, 2, 1 and 1/2 cells a patch
along a side; the last level is pooled to a few cells and back, the levels are added from the top
down, fused, and classified at the finest one. Shape legend: B images, N tokens (CLS first), h w
rows and columns of a level, D width of the encoder, E channels of the head, C classes.
"""

import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.errors import check
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.layers import Constant, TruncatedNormal, Uniform, gelu, parameter

LEVELS = 4
# the last part of the paths of what batch norm measures and nobody learns
STATISTICS = ('running_mean', 'running_var')
# set these keys apart from that of stochastic depth
_DROPOUT, _AUXILIARY_DROPOUT = 0x64726F70, 0x61757864


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig:
    """The head; the defaults are the official ones."""

    # four blocks from 0 (-1: what the first one gets); (): 3, 5, 7, 11 of 12, at the same shares of
    # other depths
    taps: tuple[int, ...] = ()
    channels: int = 0  # 0: the width of the encoder
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)  # rows and columns that the last level is pooled to
    auxiliary_channels: int = 256  # 0: no auxiliary head
    auxiliary_tap: int = 2  # the level, from 0, that the auxiliary head reads
    dropout: float = 0.1  # of whole channels, before both classifiers
    norm_eps: float = 1e-5  # of the batch norms
    norm_momentum: float = 0.1  # share of a batch in the new running statistics, as in torch

    def __post_init__(self):
        for name in ('taps', 'pool_scales'):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        check(
            len(self.taps) in (0, LEVELS),
            f'config.head.taps has {len(self.taps)} blocks: give {LEVELS}, or none for the usual '
            'ones.',
        )
        check(
            all(scale > 0 for scale in self.pool_scales),
            f'config.head.pool_scales is {self.pool_scales}: use numbers of at least 1.',
        )
        check(
            self.channels >= 0 and self.auxiliary_channels >= 0,
            'config.head.channels and config.head.auxiliary_channels cannot be negative.',
        )
        check(
            0 <= self.auxiliary_tap < LEVELS,
            f'config.head.auxiliary_tap is {self.auxiliary_tap}: use a level from 0 to '
            f'{LEVELS - 1}.',
        )
        check(
            0 <= self.dropout < 1,
            f'config.head.dropout is {self.dropout}: use a share from 0 up to but not including 1.',
        )
        check(
            self.norm_eps > 0 and 0 < self.norm_momentum <= 1,
            'config.head.norm_eps and config.head.norm_momentum must be positive, '
            'and the momentum at most 1.',
        )

    def fitted(self, encoder: EncoderConfig) -> 'UperNetConfig':
        """The same with what follows from the encoder filled in.

        Raises:
          RequestError: it has no such blocks.
        """
        depth = encoder.depth
        taps = self.taps or tuple(
            max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3, 1)
        )
        check(
            all(-1 <= tap < depth for tap in taps),
            f'config.head.taps is {taps}: the encoder has blocks 0 to {depth - 1}.',
        )
        return dataclasses.replace(self, taps=taps, channels=self.channels or encoder.width)


def resize(x_BhwC, size: tuple[int, int]):
    """Bilinear interpolation to `size` (rows, columns) as torch does it with align_corners=False,
    not antialiased; dtype as given."""
    return _resample(x_BhwC, *map(bilinear_matrix, x_BhwC.shape[1:3], size))


def pool(x_BhwC, size: int):
    """Means over size x size rectangles that cover everything and may overlap, as torch's
    AdaptiveAvgPool2d; dtype as given."""
    matrices = (_pooling_matrix(length, size) for length in x_BhwC.shape[1:3])
    # shares such as 1 / 20 are too coarse in bfloat16
    return _resample(x_BhwC.astype(jnp.float32), *matrices).astype(x_BhwC.dtype)


def _resample(x_BhwC, rows, columns):
    rows, columns = (jnp.asarray(matrix, x_BhwC.dtype) for matrix in (rows, columns))
    return jnp.einsum('Hh,Ww,bhwc->bHWc', rows, columns, x_BhwC, precision='highest')


@functools.lru_cache
def bilinear_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: torch's bilinear interpolation along one axis (centres of pixels aligned, borders
    repeated, not antialiased)."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))


@functools.lru_cache
def _pooling_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: cell i is the mean of floor(i old / new) up to ceil((i + 1) old / new)."""
    cells, places = np.arange(new)[:, None], np.arange(old)
    inside = (places >= cells * old // new) & (places < -(-(cells + 1) * old // new))
    return inside / inside.sum(axis=1, keepdims=True)


class BatchNorm(nnx.Module):
    """torch's BatchNorm2d, its statistics over the whole batch on all devices (SyncBatchNorm), in
    float32."""

    def __init__(self, width: int, *, eps: float, momentum: float, rngs: nnx.Rngs):
        self.eps, self.momentum = eps, momentum
        zeros, ones = Constant(0.0), Constant(1.0)
        self.scale, self.bias = parameter(ones, (width,), rngs), parameter(zeros, (width,), rngs)
        self.running_mean, self.running_var = (
            parameter(zeros, (width,), rngs),
            parameter(ones, (width,), rngs),
        )

    def __call__(self, x_BhwC, train: bool):
        """[B, h, w, C], of any dtype, which the result has too. With `train` the running statistics
        of this module are replaced."""
        wide = x_BhwC.astype(jnp.float32)
        if train:
            mean_C, variance_C = self._measure(wide)
        else:
            mean_C, variance_C = self.running_mean[...], self.running_var[...]
        return (
            (wide - mean_C) * (jax.lax.rsqrt(variance_C + self.eps) * self.scale[...])
            + self.bias[...]
        ).astype(x_BhwC.dtype)

    def _measure(self, x_BhwC):
        """(mean, biased variance) of the batch. The running variance is unbiased, or 0 where there
        is only one number."""
        # inside a shard_map a device sees its own images only
        axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)

        def mean(values):
            local = jnp.mean(values, axis=(0, 1, 2))
            return jax.lax.pmean(local, axes) if axes else local

        mean_C = mean(x_BhwC)
        variance_C = mean(jnp.square(x_BhwC - mean_C))
        count = math.prod(x_BhwC.shape[:3]) * (jax.lax.psum(1, axes) if axes else 1)
        for running, new in (
            (self.running_mean, mean_C),
            (self.running_var, variance_C * (count / max(count - 1, 1))),
        ):
            running.set_value(
                (1 - self.momentum) * running[...] + self.momentum * jax.lax.stop_gradient(new)
            )
        return mean_C, variance_C


class Deconvolution(nnx.Module):
    """torch's ConvTranspose2d with kernel and stride 2: each cell becomes 2 x 2, which share
    nothing with those of others."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        init = Uniform((4 * width) ** -0.5)  # torch's default
        self.dtype = dtype
        self.kernel, self.bias = (
            parameter(init, (2, 2, width, width), rngs),
            parameter(init, (width,), rngs),
        )

    def __call__(self, x_BhwD):
        """[B, h, w, D] -> [B, 2 h, 2 w, D]."""
        batch, rows, columns, width = x_BhwD.shape
        x = jnp.einsum('bhwd,ijde->bhiwje', x_BhwD, self.kernel[...].astype(self.dtype))
        return x.reshape(batch, 2 * rows, 2 * columns, width) + self.bias[...].astype(self.dtype)


def _convolution(
    inputs: int,
    outputs: int,
    size: int,
    kernel_init,
    *,
    dtype,
    rngs: nnx.Rngs,
    use_bias: bool = False,
) -> nnx.Conv:
    zeros = Constant(0.0)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={'initializer': kernel_init},
        bias_metadata={'initializer': zeros},
    )


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, ReLU (mmcv: ConvModule)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, norm: dict, dtype, rngs: nnx.Rngs):
        # He's, by the number of outputs
        init = TruncatedNormal(math.sqrt(2 / (outputs * size**2)), math.inf)
        self.conv = _convolution(inputs, outputs, size, init, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, **norm, rngs=rngs)

    def __call__(self, x_BhwC, train: bool):
        return jax.nn.relu(self.norm(self.conv(x_BhwC), train))


def _classify(classifier: nnx.Conv, x_BhwC, keys_B, dropout: float, label: int):
    """Logits float32 [B, h, w, C]; with keys, one an image, whole channels are dropped before
    (torch's Dropout2d)."""
    x_BhwC = x_BhwC.astype(jnp.float32)
    if keys_B is not None and dropout:
        keep_BC = jax.vmap(
            lambda key: jax.random.bernoulli(
                jax.random.fold_in(key, label), 1 - dropout, x_BhwC.shape[3:]
            )
        )(keys_B)
        x_BhwC = x_BhwC * (keep_BC / (1 - dropout))[:, None, None]
    return classifier(x_BhwC)


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
            return _convolution(
                inputs,
                num_classes,
                1,
                TruncatedNormal(0.01, math.inf),
                dtype=jnp.float32,
                rngs=rngs,
                use_bias=True,
            )

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
        """A list of four [B, h, w, D] -> (logits float32 [B, 4 h, 4 w, C], auxiliary ones [B, h, w,
        C] or None)."""
        config, levels = self.config, self._pyramid(taps_BhwD, train)
        laterals = [layer(level, train) for layer, level in zip(self.laterals.values(), levels)] + [
            self._pool(levels[-1], train)
        ]
        for i in reversed(range(LEVELS - 1)):
            laterals[i] += resize(laterals[i + 1], laterals[i].shape[1:3])
        outputs = [layer(level, train) for layer, level in zip(self.outputs.values(), laterals)] + [
            laterals[-1]
        ]
        size = outputs[0].shape[1:3]
        fused = self.fuse(
            jnp.concatenate(
                [outputs[0], *(resize(output, size) for output in outputs[1:])], axis=-1
            ),
            train,
        )
        logits = _classify(self.classifier, fused, keys_B, config.dropout, _DROPOUT)
        if self.auxiliary is None:
            return logits, None
        hidden = self.auxiliary['layer'](levels[config.auxiliary_tap], train)
        return logits, _classify(
            self.auxiliary['classifier'], hidden, keys_B, config.dropout, _AUXILIARY_DROPOUT
        )

    def _pyramid(self, taps_BhwD, train):
        """The taps at 4, 2, 1 and 1/2 times their rows and columns."""
        first, second, third, last = taps_BhwD
        first = self.times4['deconv2'](
            gelu(self.times4['norm'](self.times4['deconv1'](first), train))
        )
        # not jnp.max, whose gradient divides by how many equal it: none does where the compiler
        # rounds otherwise the second time
        last = nnx.max_pool(last, (2, 2), strides=(2, 2))  # the last of an odd number is left out
        return [first, self.times2['deconv'](second), third, last]

    def _pool(self, x_BhwD, train):
        """Pyramid pooling (PSPNet): the level beside its means at several scales, fused."""
        pooled = [
            resize(layer(pool(x_BhwD, scale), train), x_BhwD.shape[1:3])
            for layer, scale in zip(self.pools.values(), self.config.pool_scales)
        ]
        return self.fuse_pools(jnp.concatenate([x_BhwD, *pooled], axis=-1), train)


class Segmenter(nnx.Module):
    """Encoder and UPerNet: a class for each pixel."""

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
        """`grid`: rows and columns of patches, at least 2 each.

        Raises:
          RequestError: a smaller grid, or taps that the encoder does not have.
        """
        check(
            min(grid) > 1,
            f'{grid[0]} x {grid[1]} patches are too few for a pyramid, use 2 x 2 or more: '
            'change config.data.image_size or config.model.patch_size.',
        )
        head = head.fitted(config)
        self.encoder = Encoder(config, grid, masked=False, dtype=dtype, rngs=rngs)
        self.head = UperNetHead(head, config.width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC, *, keys_B=None, train: bool = False):
        """Classifies pixels. The grid's cells are patches; logits are four a patch along a side:
        `resize` brings them to the pixels.

        Args:
          images_BHWC: normalised pixels, float [B, height, width, 3], of the grid's size.
          keys_B: a key an image for stochastic depth and dropout, or None.
          train: batch norm uses the statistics of this batch, over all devices, and not the running
            ones. This module then holds the new running statistics, so that it must have been
            merged in the same trace.

        Returns:
          (logits float32 [B, 4 rows, 4 columns, C], those of the auxiliary head [B, rows, columns,
            C] (its level's size) or None, the new running statistics as the sub-tree of the
            parameters that they replace; {} where `train` is false).
        """
        taps = self.encoder.taps(images_BHWC, self.head.config.taps, keys_B=keys_B)
        taps_BhwD = [
            x_BND[:, 1:].reshape(len(x_BND), *self.encoder.grid_shape, -1) for x_BND in taps
        ]
        logits, auxiliary = self.head(taps_BhwD, keys_B, train)
        return logits, auxiliary, nnx.to_pure_dict(nnx.state(self, is_statistic)) if train else {}


def is_statistic(path, _=None) -> bool:
    """Whether a parameter, by its path (a tuple of names), is a running statistic."""
    return path[-1] in STATISTICS
