"""The "customized" discrete VAE of the official BEiT code (unilm/beit/modeling_discrete_vae.py:66):
strided convolutions and an embedding.

The published one: 3 layers that each halve the picture, 8192 tokens, width 256, codes of width 512.
Shape legend: B images, S side in pixels, h w rows and columns of the token grid, V vocabulary, C
width of a code.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.models.tokenizers import check_vocabulary, dtype_and_precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    layers: int = 3  # each halves the picture
    width: int = 256
    code_width: int = 512
    vocabulary: int = 8192

    def __post_init__(self):
        check(
            min(self.layers, self.width, self.code_width) > 0,
            'layers, width and code_width of the tokenizer must be at least 1.',
        )
        check(self.layers <= 16, f'the tokenizer has {self.layers} layers: use at most 16.')
        check_vocabulary(self.vocabulary)


class _ResidualBlock(nnx.Module):
    """x + three convolutions; named by their places in PyTorch's Sequential."""

    def __init__(self, width, **options):
        self.convs = nnx.Dict(
            {
                str(2 * i): nnx.Conv(width, width, (size, size), **options)
                for i, size in enumerate((3, 3, 1))
            }
        )

    def __call__(self, x):
        first, second, third = self.convs.values()
        return x + third(jax.nn.relu(second(jax.nn.relu(first(x)))))


class CustomizedEncoder(nnx.Module):
    """Pictures to token logits."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        options, layers = {'dtype': dtype, 'precision': precision, 'rngs': rngs}, {}
        for i in range(config.layers):
            layers[str(2 * i)] = nnx.Conv(
                config.width if i else 3, config.width, (4, 4), strides=2, padding=1, **options
            )
            layers[str(2 * i + 1)] = _ResidualBlock(config.width, **options)
        self.layers = nnx.Dict(layers)
        self.output = nnx.Conv(
            config.width,
            config.vocabulary,
            (1, 1),
            dtype=jnp.float32,
            precision=precision,
            rngs=rngs,
        )

    def __call__(self, images_BSS3):
        """Pixels in [-1, 1], float [B, S, S, 3] -> logits float32 [B, h, w, V]."""
        x = images_BSS3
        for i, layer in enumerate(self.layers.values()):
            x = layer(x) if i % 2 else jax.nn.relu(layer(x))
        return self.output(x.astype(jnp.float32))


class CustomizedDecoder(nnx.Module):
    """Token ids to pictures."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        options, layers = {'dtype': dtype, 'precision': precision, 'rngs': rngs}, {}
        self.codebook = nnx.Param(
            jax.random.normal(rngs.params(), (config.vocabulary, config.code_width))
        )
        for i in range(config.layers):
            inputs = config.width if i else config.code_width
            # what PyTorch calls padding 1 of a transposed convolution of size 4 is padding 4 - 1 -
            # 1 here
            layers[str(2 * i)] = nnx.ConvTranspose(
                inputs, config.width, (4, 4), strides=2, padding=((2, 2), (2, 2)), **options
            )
            layers[str(2 * i + 1)] = _ResidualBlock(config.width, **options)
        self.layers = nnx.Dict(layers)
        self.output = nnx.Conv(
            config.width, 3, (1, 1), dtype=jnp.float32, precision=precision, rngs=rngs
        )

    def __call__(self, ids_Bhw):
        """int [B, h, w] -> pixels near [-1, 1], float32 [B, S, S, 3]."""
        x = self.codebook[...][ids_Bhw]
        for i, layer in enumerate(self.layers.values()):
            x = layer(x) if i % 2 else jax.nn.relu(layer(x))
        return self.output(x.astype(jnp.float32))


class Tokenizer:
    """A token is the most likely code of its cell."""

    pixels = '2 x - 1'

    def __init__(self, config: Config, image_size: int, precision: str = 'float32'):
        self.config, self.image_size, self.vocabulary, self.factor = (
            config,
            image_size,
            config.vocabulary,
            2**config.layers,
        )
        options = dtype_and_precision(precision)
        self._modules = {
            'encoder': nnx.eval_shape(
                lambda: CustomizedEncoder(config, **options, rngs=nnx.Rngs(0))
            ),
            'decoder': nnx.eval_shape(
                lambda: CustomizedDecoder(config, **options, rngs=nnx.Rngs(0))
            ),
        }

    def abstract(self):
        return {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self._modules.items()}

    def encode(self, params, images_BSS3):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        logits_BhwV = nnx.merge(nnx.graphdef(self._modules['encoder']), params['encoder'])(
            2 * images_BSS3 - 1
        )
        return jnp.argmax(logits_BhwV, axis=-1).reshape(images_BSS3.shape[0], -1).astype(jnp.int32)

    def decode(self, params, ids_BP):
        """Gives pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        side = math.isqrt(ids_BP.shape[1])
        decoder = nnx.merge(nnx.graphdef(self._modules['decoder']), params['decoder'])
        return jnp.clip((decoder(ids_BP.reshape(-1, side, side)) + 1) / 2, 0, 1)
