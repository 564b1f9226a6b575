"""The discrete VAE of DALL-E: with its own weights, and with those you train.

arXiv 2102.12092, appendix A.1; package dall_e: encoder.py, decoder.py. An encoder gives each cell
of a grid logits over a vocabulary, a decoder draws a picture from one vector over the vocabulary
per cell. The published model: 4 groups of 2 blocks, width 256, vocabulary 8192; a group halves the
picture, the last one does not. Shape legend: B images, h w rows and columns of the token grid, V
vocabulary. Pictures are [B, height, width, channels].
"""

import dataclasses
import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.models.initializers import Constant
from beit_jax.models.layers import product
from beit_jax.models.platform import target_platform
from beit_jax.models.tokenizers import Vocabulary, dtype_and_precision, square_grid, token_ids
from beit_jax.models.tokenizers.fused_block import fits, fused_block
from beit_jax.settings.intervals import Count, Interval, Width

LOGIT_LAPLACE_EPS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture; the defaults are DALL-E's."""

    groups: Annotated[int, Interval(1, 16)] = 4  # of blocks; all but the last halve the resolution
    blocks: Annotated[int, Interval(1, 16)] = 2  # per group
    # of the widest resolution; doubles from group to group
    width: Annotated[int, Interval(4, 2**14)] = 256
    # width that the decoder gives the vocabulary's vectors
    decoder_input: Width = 128
    vocabulary: Vocabulary = 8192  # number of tokens
    channels: Count = 3  # of a picture: those that config.data reads

    def __post_init__(self):
        check(
            self.width % 4 == 0,
            f"the tokenizer's width is {self.width}: use a multiple of 4.",
        )

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (self.groups - 1)


@dataclasses.dataclass(frozen=True)
class FanInNormal:
    """Normal draws of deviation 1 / sqrt(fan in) (dall_e/utils.py)."""

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        fan_in, outputs = math.prod(shape[:-1]), shape[-1]
        # 4-D draws compile five times slower
        kernel = jax.random.normal(key, (fan_in, outputs), dtype) / math.sqrt(fan_in)
        return kernel.reshape(shape)

    def __str__(self):
        return 'normal(1 / sqrt(fan_in))'


def map_pixels(images):
    """[0, 1] -> [0.1, 0.9], what the encoder takes: keeps the logit-Laplace density finite."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images):
    """The inverse of `map_pixels`, clipped to [0, 1]."""
    return jnp.clip((images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS), 0, 1)


def _conv(inputs, outputs, size, *, dtype, precision, rngs):
    kernel_init, zeros = FanInNormal(), Constant(0.0)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        kernel_init=kernel_init,
        bias_init=zeros,
        dtype=dtype,
        precision=precision,
        rngs=rngs,
        kernel_metadata={'initializer': kernel_init},
        bias_metadata={'initializer': zeros},
        conv_general_dilated=_convolve,
    )


def _convolve(x, kernel, *arguments, precision, **options):
    """As jax.lax.conv_general_dilated; one of a single pixel is a matrix product, except on a TPU.

    A third faster on a CPU.
    """
    if kernel.shape[:2] == (1, 1) and target_platform() != 'tpu':
        return product(x, kernel[0, 0], precision=precision)
    return jax.lax.conv_general_dilated(x, kernel, *arguments, precision=precision, **options)


class _ResidualBlock(nnx.Module):
    """x + gain * four convolutions; `sizes` are their kernel sizes."""

    def __init__(self, inputs, outputs, sizes, gain, **options):
        hidden = outputs // 4
        widths = (inputs, hidden, hidden, hidden, outputs)
        self.gain = gain
        self.shortcut = _conv(inputs, outputs, 1, **options) if inputs != outputs else None
        self.convs = nnx.Dict(
            {str(i + 1): _conv(widths[i], widths[i + 1], sizes[i], **options) for i in range(4)}
        )

    def __call__(self, x, fused: bool = False):
        """`fused`: as one kernel, which has no gradient, where there is one for such pictures."""
        convs = self.convs.values()
        first = self.convs['1']
        if fused and self.shortcut is None and fits(x, first.out_features):
            kernels = [conv.kernel[...] for conv in convs]
            biases = [conv.bias[...] for conv in convs]
            interpret = target_platform() != 'tpu'
            return fused_block(x, kernels, biases, self.gain, first.precision, interpret)
        y = x
        for conv in convs:
            y = conv(jax.nn.relu(y))
        return (x if self.shortcut is None else self.shortcut(x)) + self.gain * y


def _groups(config, widths, sizes, **options):
    """Groups of blocks: group i goes from widths[i] to widths[i + 1]."""
    gain, groups = 1 / (config.groups * config.blocks) ** 2, {}
    for g in range(config.groups):
        before, after, blocks = widths[g], widths[g + 1], {}
        for b in range(config.blocks):
            inputs = before if b == 0 else after
            blocks[str(b + 1)] = _ResidualBlock(inputs, after, sizes, gain, **options)
        groups[str(g + 1)] = nnx.Dict(blocks)
    return nnx.Dict(groups)


class DVAEEncoder(nnx.Module):
    """Pictures to token logits."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        widths = [config.width] + [config.width * 2**g for g in range(config.groups)]
        options = {'precision': precision, 'rngs': rngs}
        self.input = _conv(config.channels, config.width, 7, dtype=dtype, **options)
        self.groups = _groups(config, widths, (3, 3, 3, 1), dtype=dtype, **options)
        # an argmax follows: the logits stay float32
        self.output = _conv(widths[-1], config.vocabulary, 1, dtype=jnp.float32, **options)

    def __call__(self, images_BHWC, fused: bool = False):
        """Pixels in [0.1, 0.9], float [B, height, width, C] -> logits float32 [B, h, w, V].

        `map_pixels` makes such pixels. `fused`: narrow blocks as one kernel (`fused_block`), which
        has no gradient.
        """
        x, last = self.input(images_BHWC), len(self.groups)
        for g, group in enumerate(self.groups.values(), start=1):
            for block in group.values():
                x = block(x, fused)
            if g < last:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.output(jax.nn.relu(x).astype(jnp.float32))


class DVAEDecoder(nnx.Module):
    """Vectors over the vocabulary to pictures."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        doubled = [config.width * 2**g for g in range(config.groups)]
        widths = [config.decoder_input, *reversed(doubled)]
        options = {'precision': precision, 'rngs': rngs}
        self.input = _conv(config.vocabulary, config.decoder_input, 1, dtype=dtype, **options)
        self.groups = _groups(config, widths, (1, 3, 3, 3), dtype=dtype, **options)
        self.output = _conv(config.width, 2 * config.channels, 1, dtype=jnp.float32, **options)

    def __call__(self, codes_BhwV):
        """One-hot or relaxed codes, float [B, h, w, V] -> float32 [B, height, width, 2 C].

        The result is location and log-scale of the logit-Laplace density:
        `unmap_pixels(sigmoid(first C channels))` is the picture in [0, 1].
        """
        x, last = self.input(codes_BhwV), len(self.groups)
        for g, group in enumerate(self.groups.values(), start=1):
            for block in group.values():
                x = block(x)
            if g < last:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.output(jax.nn.relu(x).astype(jnp.float32))


class DVAE(nnx.Module):
    """Encoder and decoder together: what is trained."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        self.encoder = DVAEEncoder(config, dtype=dtype, precision=precision, rngs=rngs)
        self.decoder = DVAEDecoder(config, dtype=dtype, precision=precision, rngs=rngs)


class Tokenizer:
    """A token is the most likely code of its cell."""

    pixels, resampling, decodes = '0.8 x + 0.1', 'lanczos3', 'pixels'

    def __init__(self, config: Config, image_size: int, precision: str = 'float32'):
        self.config, self.image_size = config, image_size
        self.vocabulary, self.factor = config.vocabulary, config.factor
        self.channels = config.channels
        options = dtype_and_precision(precision)
        self._whole = nnx.eval_shape(lambda: DVAE(config, **options, rngs=nnx.Rngs(0)))
        self._encoder = nnx.graphdef(self._whole.encoder)
        self._decoder = nnx.graphdef(self._whole.decoder)

    def abstract(self):
        return nnx.to_pure_dict(nnx.state(self._whole))

    def encode(self, params, images_BHWC):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        encoder = nnx.merge(self._encoder, params['encoder'])
        logits_BhwV = encoder(map_pixels(images_BHWC), fused=target_platform() == 'tpu')
        return token_ids(logits_BhwV).reshape(images_BHWC.shape[0], -1)

    def decode(self, params, ids_BP, grid=None):
        """Gives pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        ids_Bhw = ids_BP.reshape(-1, *(grid or square_grid(ids_BP)))
        codes_BhwV = jax.nn.one_hot(ids_Bhw, self.vocabulary)
        decoder = nnx.merge(self._decoder, params['decoder'])
        return unmap_pixels(jax.nn.sigmoid(decoder(codes_BhwV)[..., : self.channels]))
