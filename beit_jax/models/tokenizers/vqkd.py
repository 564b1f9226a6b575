"""VQ-KD, the tokenizer of BEiT v2: a token keeps what a teacher sees in a patch.

arXiv 2208.06366, section 3.1; beit2/modeling_vqkd.py. A ViT gives each patch a vector of length 1,
of which the nearest row of a codebook is the token; a smaller ViT makes the teacher's features of
the rows. `tasks.vqkd` trains it. Shape legend: B images, h w rows and columns of patches, P
patches, V vocabulary, C width of a code, F width of the teacher's features.
"""

import dataclasses
import functools
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.initializers import TruncatedNormal, parameter
from beit_jax.models.layers import layer_norm, linear, unit
from beit_jax.models.resize import resize_position_embedding
from beit_jax.models.tokenizers import Vocabulary, dtype_and_precision, square_grid
from beit_jax.models.tokenizers.kmeans import nearest, sum_by_centroid
from beit_jax.settings.intervals import Count, Interval, Width

Depth = Annotated[int, Interval(1, 200)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture; the defaults are the released base tokenizer's whose teacher is DINO."""

    vocabulary: Vocabulary = 8192  # number of tokens
    code_width: Width = 32  # of the vectors that are compared with the codebook
    patch_size: Count = 16  # side in pixels
    channels: Count = 3  # of a picture: those that config.data reads
    width: Width = 768  # of both ViTs, as heads and hidden
    depth: Depth = 12  # of the encoder
    decoder_depth: Depth = 1  # blocks of the decoder
    heads: Count = 12  # of attention
    hidden: Annotated[int, Interval(1, 2**16)] = 3072  # of the MLPs
    features: Width = 768  # of the teacher

    def __post_init__(self):
        check(
            self.width % self.heads == 0,
            f"the tokenizer's width {self.width} is not a multiple of its {self.heads} heads.",
        )

    def vit(self, *, decoder: bool = False, **options) -> EncoderConfig:
        """The architecture of the encoder's ViT, or of the decoder's, on a map of codes."""
        return EncoderConfig(
            width=self.width,
            depth=self.decoder_depth if decoder else self.depth,
            heads=self.heads,
            hidden=self.hidden,
            patch_size=1 if decoder else self.patch_size,
            channels=self.code_width if decoder else self.channels,
            positions='absolute',
            layer_scale=0.0,
            drop_path=0.0,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class UnitRows:
    """Rows of length 1 in random directions."""

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        return unit(jax.random.normal(key, shape, dtype))

    def __str__(self):
        return 'unit_rows'


def first_codebook(key, vectors_NC, vocabulary: int, iterations: int = 10):
    """Rows [V, C] of length 1 for vectors of length 1: k-means by cosine from random ones of them,
    which come repeatedly where there are fewer than rows. A row that nobody is nearest to stays."""
    repeated = len(vectors_NC) < vocabulary
    rows_VC = jax.random.choice(key, vectors_NC, (vocabulary,), replace=repeated)
    move = lambda _, rows_VC: _means(*sum_by_centroid(vectors_NC, vectors_NC, rows_VC), rows_VC)
    return jax.lax.fori_loop(0, iterations, move, rows_VC)


def next_codebook(codebook_VC, sums_VC, counts_V, decay: float):
    """The moving average of a codebook after a batch (norm_ema_quantizer.py).

    `sums_VC`: of the vectors that chose each row, `counts_V` how many there are, over all devices
    and parts of the batch.
    """
    means_VC = _means(sums_VC, counts_V, codebook_VC)
    return unit(decay * codebook_VC + (1 - decay) * means_VC)


def _means(sums_VC, counts_V, otherwise_VC):
    """Directions of the mean vectors; where there are none, `otherwise`."""
    means_VC = unit(sums_VC / jnp.maximum(counts_V, 1)[:, None])
    return jnp.where(counts_V[:, None] > 0, means_VC, otherwise_VC)


class Half(nnx.Module):
    """A ViT whose patches go through a norm and, in float32, a linear layer, tanh and another."""

    def __init__(self, config: EncoderConfig, grid, outputs: int, *, dtype, rngs: nnx.Rngs):
        self.vit = Encoder(config, grid, masked=False, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(config.width, config.norm_eps, dtype=dtype, rngs=rngs)
        init, options = TruncatedNormal(config.init_std, 2.0), {'dtype': jnp.float32, 'rngs': rngs}
        self.fc1 = linear(config.width, config.width, init, **options)
        self.fc2 = linear(config.width, outputs, init, **options)

    def __call__(self, x_BHWC):
        """[B, height, width, channels] -> float32 [B, P, outputs]."""
        x_BPD = self.norm(self.vit(x_BHWC)[:, 1:]).astype(jnp.float32)
        return self.fc2(jnp.tanh(self.fc1(x_BPD)))


class VQKD(nnx.Module):
    """Encoder with its codebook, and decoder: what is trained."""

    def __init__(
        self,
        config: Config,
        grid: tuple[int, int],
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        """`grid`: rows and columns of patches; `options`: of `EncoderConfig`."""
        self.grid, made = grid, {'dtype': dtype, 'rngs': rngs}
        self.encoder = Half(config.vit(**options), grid, config.code_width, **made)
        rows = config.vocabulary, config.code_width
        self.encoder.codebook = parameter(UnitRows(), rows, rngs)
        self.decoder = Half(config.vit(decoder=True, **options), grid, config.features, **made)

    def encode(self, images_BHWC):
        """Pixels in [0, 1], float -> vectors of length 1, float32 [B, P, C]."""
        return unit(self.encoder(2 * images_BHWC - 1))

    def choose(self, vectors_BPC):
        """The nearest row of the codebook, int32 [B, P]."""
        return nearest(vectors_BPC, self.encoder.codebook[...], 'float32')

    def decode(self, codes_BPC):
        """Codes, float -> the teacher's features, float32 [B, P, F]."""
        return self.decoder(codes_BPC.reshape(-1, *self.grid, codes_BPC.shape[-1]))


class Tokenizer:
    """See `beit_jax.models.tokenizers.Tokenizer`; positions are interpolated for pictures of
    another size than it is for."""

    pixels, resampling, decodes = '2 x - 1', 'bicubic', 'features'

    def __init__(self, config: Config, image_size, precision: str = 'float32'):
        self.config, self.image_size = config, image_size
        self.vocabulary, self.factor = config.vocabulary, config.patch_size
        self.channels = config.channels
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self._grid = config.vit().grid(height, width)
        self._options = dtype_and_precision(precision)
        # the kernels of TPUs know no precision but their own
        self._attention = 'auto' if precision == 'bfloat16' else 'plain'
        self._whole = functools.lru_cache(self._abstract)

    def _abstract(self, grid):
        options = {'dtype': self._options['dtype'], 'attention': self._attention}
        return nnx.eval_shape(lambda: VQKD(self.config, grid, **options, rngs=nnx.Rngs(0)))

    def abstract(self):
        return nnx.to_pure_dict(nnx.state(self._whole(self._grid)))

    def encode(self, params, images_BHWC):
        """Pixels in [0, 1]; see `beit_jax.models.tokenizers.Tokenizer`."""
        _, height, width, _ = images_BHWC.shape
        model = self._model(params, ('encoder',), (height // self.factor, width // self.factor))
        with jax.default_matmul_precision(self._options['precision']):
            return model.choose(model.encode(images_BHWC))

    def decode(self, params, ids_BP, grid=None):
        """Gives features; see `beit_jax.models.tokenizers.Tokenizer`."""
        model = self._model(params, ('encoder', 'decoder'), tuple(grid or square_grid(ids_BP)))
        with jax.default_matmul_precision(self._options['precision']):
            return model.decode(params['encoder']['codebook'][ids_BP])

    def _model(self, params, halves: tuple[str, ...], grid: tuple[int, int]) -> VQKD:
        """The module with the parameters of some halves, for pictures of a grid of patches."""
        model, fitted = self._whole(grid), {}
        for name in halves:
            vit = dict(params[name]['vit'])
            if grid != self._grid:
                vit['position_embedding'] = resize_position_embedding(
                    vit['position_embedding'], self._grid, grid
                )
            fitted[name] = params[name] | {'vit': vit}
        graphdef, state = nnx.split(model)
        return nnx.merge(graphdef, nnx.to_pure_dict(state) | fitted)
