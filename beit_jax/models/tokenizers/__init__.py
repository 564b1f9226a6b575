"""What pre-training knows of a tokenizer: pictures to token ids, and ids to pictures or features.

A kind of tokenizer is one file of this folder, with two classes: `Config`, its architecture, and
`Tokenizer`. Its name in KINDS makes it known to every recipe and tool. Shape legend: B images, S
side in pixels, P tokens in reading order, V vocabulary, F width of a feature.
"""

from collections.abc import Mapping, Sequence
import importlib
import math
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp

from beit_jax.errors import check, one_of
from beit_jax.models.platform import target_platform
from beit_jax.settings.intervals import Interval
from beit_jax.settings.mapping import from_mapping

KINDS = ('dvae', 'customized', 'kmeans', 'random_projection', 'vqkd')
# bfloat16_3x, for a TPU: three bfloat16 products for one keep all but one in ten thousand of
# float32's ids. For a GPU: tensorfloat32, whose products see ten bits of mantissa, and float16, ten
# bits in memory too, in which DALL-E's own code runs there. They keep 99.8 % (docs/benchmarks.md).
PRECISIONS = ('float32', 'bfloat16_3x', 'tensorfloat32', 'float16', 'bfloat16')
# What they are where there is such a thing, or else the next that is no worse.
_HERE = {
    'tpu': dict.fromkeys(('bfloat16_3x', 'tensorfloat32', 'float16'), 'bfloat16_3x'),
    'gpu': {'tensorfloat32': 'tensorfloat32', 'float16': 'float16'},
}
Vocabulary = Annotated[int, Interval(2, 2**16)]  # ids fit uint16


class Tokenizer(Protocol):
    """A fixed map from pictures to grids of tokens.

    `params` is a nested dict of arrays, passed in so that it can be placed on a mesh.
    """

    kind: str  # of KINDS
    config: Any  # the architecture, a dataclass
    vocabulary: int
    channels: int  # of its pictures
    # side in pixels of the pictures it is for (or height and width); it takes other multiples of
    # `factor` too
    image_size: int | tuple[int, int]
    factor: int  # pixels per token along each side
    pixels: str  # how it maps pixels in [0, 1], in words
    resampling: str  # how its pictures are resized: lanczos3 | bicubic
    decodes: str  # what its decoder makes of ids: pixels | features

    def abstract(self) -> dict:
        """Shapes and dtypes of the parameters: of 'encoder' and, if it can decode, of
        'decoder'."""

    def encode(self, params: Any, images_BSS3: jax.Array) -> jax.Array:
        """Pixels in [0, 1], float32 [B, height, width, channels] -> ids int32 [B, P].

        Reads params['encoder'] alone.
        """

    def decode(
        self, params: Any, ids_BP: jax.Array, grid: tuple[int, int] | None = None
    ) -> jax.Array:
        """ids int [B, P] of a grid, square where that is None -> pixels in [0, 1], float32 [B,
        height, width, channels]; where `decodes` is features, float32 [B, P, F].

        Reads params['decoder'], and of params['encoder'] no more than a codebook.
        """


def square_grid(ids_BP: jax.Array) -> tuple[int, int]:
    """Rows and columns of so many ids."""
    side = math.isqrt(ids_BP.shape[1])
    return side, side


def make_tokenizer(
    kind: str,
    architecture: Mapping,
    image_size: int | Sequence[int],
    precision: str = 'float32',
) -> Tokenizer:
    """The tokenizer of an architecture (a mapping of settings).

    Raises:
      RequestError: no such kind or setting, or sizes that do not fit.
    """
    one_of('kind', kind, KINDS)
    one_of('precision', precision, PRECISIONS)
    module = importlib.import_module(f'beit_jax.models.tokenizers.{kind}')
    config = from_mapping(module.Config, architecture, 'architecture.')
    square = isinstance(image_size, int)
    tokenizer = module.Tokenizer(config, image_size if square else tuple(image_size), precision)
    check(
        all(
            side > 0 and side % tokenizer.factor == 0
            for side in ([image_size] if square else image_size)
        ),
        f'a tokenizer with {tokenizer.factor} pixels per token cannot cut pictures of '
        f'{image_size}: use a multiple.',
    )
    tokenizer.kind = kind
    return tokenizer


def precision_here(precision: str) -> str:
    """Which of PRECISIONS one of them is on the devices that are traced for."""
    if precision == 'bfloat16':
        return precision
    return _HERE.get(target_platform(), {}).get(precision, 'float32')


def dtype_and_precision(precision: str) -> dict:
    """What flax and JAX call one of PRECISIONS: {'dtype', 'precision'}."""
    here = precision_here(precision)
    if here.endswith('16'):
        return {'dtype': here, 'precision': 'default'}
    return {'dtype': 'float32', 'precision': here}


def token_ids(scores):
    """The token of the highest score, the first of equal ones: finite [..., V] -> int32 [...]."""
    if target_platform() != 'cpu':
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    # a CPU compares pairs one by one: its numbers twice are two to ten times as fast
    highest = jnp.max(scores, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jnp.min(jnp.where(scores == highest, ids, scores.shape[-1]), axis=-1)
