"""The "customized" discrete VAE of the official code: strided convolutions and an embedding.

unilm/beit/modeling_discrete_vae.py:66. The published one: 3 layers that each halve the picture,
8192 tokens, width 256, codes of width 512. Shape legend: B images, S side in pixels, h w rows and
columns of the token grid, V vocabulary, C width of a code.
"""

import dataclasses
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.models.tokenizers import Vocabulary, dtype_and_precision, square_grid, token_ids
from beit_jax.settings.intervals import Interval, Width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    layers: Annotated[int, Interval(1, 16)] = 3  # each halves the picture
    width: Width = 256
    code_width: Width = 512
    vocabulary: Vocabulary = 8192


class _ResidualBlock(nnx.Module):
    """x + three convolutions; named by their places in PyTorch's Sequential."""

    def __init__(self, width, **options):
        conv = lambda size: nnx.Conv(width, width, (size, size), **options)
        self.convs = nnx.Dict({'0': conv(3), '2': conv(3), '4': conv(1)})

    def __call__(self, x):
        first, second, third = self.convs.values()
        return x + third(jax.nn.relu(second(jax.nn.relu(first(x)))))


class CustomizedEncoder(nnx.Module):
    """Pictures to token logits."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        width, layers, options = config.width, {}, {'precision': precision, 'rngs': rngs}
        for i in range(config.layers):
            inputs = width if i else 3
            layers[str(2 * i)] = nnx.Conv(
                inputs, width, (4, 4), strides=2, padding=1, dtype=dtype, **options
            )
            layers[str(2 * i + 1)] = _ResidualBlock(width, dtype=dtype, **options)
        self.layers = nnx.Dict(layers)
        self.output = nnx.Conv(width, config.vocabulary, (1, 1), dtype=jnp.float32, **options)

    def __call__(self, images_BSS3):
        """Pixels in [-1, 1], float [B, S, S, 3] -> logits float32 [B, h, w, V]."""
        x = images_BSS3
        for i, layer in enumerate(self.layers.values()):
            x = layer(x) if i % 2 else jax.nn.relu(layer(x))
        return self.output(x.astype(jnp.float32))


class CustomizedDecoder(nnx.Module):
    """Token ids to pictures."""

    def __init__(self, config: Config, *, dtype=jnp.float32, precision=None, rngs: nnx.Rngs):
        width, layers, options = config.width, {}, {'precision': precision, 'rngs': rngs}
        codes = jax.random.normal(rngs.params(), (config.vocabulary, config.code_width))
        self.codebook = nnx.Param(codes)
        padding = (2, 2), (2, 2)  # 4 - 1 - 1: for a kernel of 4 what PyTorch calls padding 1
        for i in range(config.layers):
            inputs = width if i else config.code_width
            layers[str(2 * i)] = nnx.ConvTranspose(
                inputs, width, (4, 4), strides=2, padding=padding, dtype=dtype, **options
            )
            layers[str(2 * i + 1)] = _ResidualBlock(width, dtype=dtype, **options)
        self.layers = nnx.Dict(layers)
        self.output = nnx.Conv(width, 3, (1, 1), dtype=jnp.float32, **options)

    def __call__(self, ids_Bhw):
        """int [B, h, w] -> pixels near [-1, 1], float32 [B, S, S, 3]."""
        x = self.codebook[...][ids_Bhw]
        for i, layer in enumerate(self.layers.values()):
            x = layer(x) if i % 2 else jax.nn.relu(layer(x))
        return self.output(x.astype(jnp.float32))


class Tokenizer:
    """A token is the most likely code of its cell."""

    pixels, channels, resampling, decodes = '2 x - 1', 3, 'lanczos3', 'pixels'

    def __init__(self, config: Config, image_size: int, precision: str = 'float32'):
        self.config, self.image_size = config, image_size
        self.vocabulary, self.factor = config.vocabulary, 2**config.layers

        def shapes(module):
            options = dtype_and_precision(precision)
            return nnx.eval_shape(lambda: module(config, **options, rngs=nnx.Rngs(0)))

        self._modules = {
            'encoder': shapes(CustomizedEncoder),
            'decoder': shapes(CustomizedDecoder),
        }

    def abstract(self):
        return {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self._modules.items()}

    def encode(self, params, images_BSS3):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        encoder = nnx.merge(nnx.graphdef(self._modules['encoder']), params['encoder'])
        return token_ids(encoder(2 * images_BSS3 - 1)).reshape(images_BSS3.shape[0], -1)

    def decode(self, params, ids_BP, grid=None):
        """Gives pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        decoder = nnx.merge(nnx.graphdef(self._modules['decoder']), params['decoder'])
        return jnp.clip((decoder(ids_BP.reshape(-1, *(grid or square_grid(ids_BP)))) + 1) / 2, 0, 1)
