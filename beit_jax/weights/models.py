"""A model from a checkpoint or a file of weights alone.

Its description says what to build and how to show it pictures.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
from pathlib import Path
import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from beit_jax.data.pictures.load import read_picture, square
from beit_jax.errors import check, one_of
from beit_jax.images.color import normalize, to_float
from beit_jax.models.architecture import (
    abstract,
    check_encodes,
    predicts_tokens,
    segments,
)
from beit_jax.models.heads import pool_both
from beit_jax.models.resize import resize
from beit_jax.settings.run import COMPUTE_DTYPES
from beit_jax.weights.exports import FORMATS, write_export
from beit_jax.weights.load import load_weights
from beit_jax.weights.positions import fit_positions
from beit_jax.weights.standardised import statistics
from beit_jax.weights.stored import Stored
from beit_jax.weights.trees import check_params
from beit_jax.whole_files import local_path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(Stored):
    """An encoder with its head, compiled on first use for each number of pictures.

    Pictures are what `preprocess` makes of any: uint8 in [0, 255], or float in [0, 1], [B, S, S,
    3], RGB, S = image_size. Normalisation is part of the model. Of a model for other pictures
    (`pixels`) or no square ones: [B, height, width, channels], uint8, uint16, or float in [0, 1].
    """

    graphdef: nnx.GraphDef
    dtype: str = 'float32'  # of the products and of the residual stream

    def preprocess(self, images: Sequence[Image.Image | np.ndarray | str | Path]) -> np.ndarray:
        """Pillow images, of any size and mode, or paths of files -> uint8 [B, S, S, 3].

        The central square of each (`crop`), bicubic, antialiased, as BEiT is evaluated. Modes and
        files become RGB as in training: of 16 bits the upper 8, alpha dropped. A model for other
        `pixels` takes arrays [H, W, channels] too, turns nothing into another format, and gives
        [B, height, width, channels] of its bands.

        Raises:
          RequestError: a file that is no image, a Pillow image whose range is not known (mode F).
        """
        pixels = self.pixels
        taken = (str, Path, Image.Image, *([] if pixels.is_rgb else [np.ndarray]))
        check(
            isinstance(images, (list, tuple))
            and len(images) > 0
            and all(isinstance(image, taken) for image in images),
            f'give a list of Pillow images{"" if pixels.is_rgb else ", arrays"} or paths, even for '
            'one.',
        )
        images = [os.path.expanduser(one) if isinstance(one, str) else one for one in images]
        pictures = [read_picture(image, self.reading) for image in images]
        return np.stack([square(one, self.image_size, self.crop, pixels) for one in pictures])

    def logits(self, images) -> jax.Array:
        """float32 [B, C] of the classes: `problem_type` says what they are. Of regression these are
        the numbers, in the units of the labels.

        Raises:
          RequestError: a model without classes, or images of another shape or range.
        """
        check(
            not segments(self.architecture),
            'this checkpoint classifies pixels: ask it to segment pictures.',
        )
        check(
            self.architecture.get('num_classes', 0) > 0,
            'this checkpoint is of pre-training and has no classes: fine-tune it first, or ask '
            f'for features{" or tokens" * predicts_tokens(self.architecture)}.',
        )
        return self._logits(self.params, self._checked(images))

    def segment(self, images) -> jax.Array:
        """Logits of the classes of each pixel.

        Pictures may be of any size, [B, H, W, 3], and are looked at whole: positions are
        interpolated to their patches, of which the last ones are filled up with the mean colour.

        Returns:
          float32 [B, H, W, C].

        Raises:
          RequestError: a model that does not classify pixels, or images of another shape or range.
        """
        check(
            segments(self.architecture),
            'this checkpoint does not classify pixels: give one of segmentation.',
        )
        return self._segment(self.params, self._checked(images, any_size=True))

    def tokens(self, images) -> jax.Array:
        """The visual tokens that are predicted for all patches, nothing hidden, int32 [B, P].

        Raises:
          RequestError: a model without a head for tokens, or images of another shape or range.
        """
        check(
            predicts_tokens(self.architecture),
            'this checkpoint predicts no tokens: ask for classes or features, or give one that was '
            'pre-trained on tokens.',
        )
        return self._tokens(self.params, self._checked(images))

    def features(
        self, images, layers: Sequence[int] | None = None, patches: bool = False
    ) -> dict[str, jax.Array]:
        """What blocks give, before any norm.

        Args:
          images: see above.
          layers: from 1, as a probe counts them, or from the last one, -1; None: all L.
          patches: give those of each patch too.

        Returns:
          `cls` and `mean` (of the patches), float32 [len(layers), B, D]; with patches also
            `patches` [len(layers), B, rows, columns, D].

        Raises:
          RequestError: a layer that is not there, or images of another shape or range.
        """
        layers = range(1, self.architecture['depth'] + 1) if layers is None else layers
        check(
            isinstance(layers, (list, tuple, range)) and len(layers) > 0,
            f'layers={layers}: give a list of layers, even for one.',
        )
        images, blocks = self._checked(images), tuple(self.layer(one) - 1 for one in layers)
        return self._features(self.params, images, blocks, patches)

    def attention(self, images, layer: int) -> jax.Array:
        """How much each token of a layer (from 1, or from the last one, -1) looks at each other
        one, CLS first.

        Returns:
          float32 [B, H, N, N] (query, key); rows sum to 1.

        Raises:
          RequestError: a layer that is not there, or images of another shape or range.
        """
        return self._attention(self.params, self._checked(images), self.layer(layer) - 1)

    def layer(self, number: int) -> int:
        """The number from 1 of a layer that is counted from 1, or from the last one, -1.

        Raises:
          RequestError: there is none.
        """
        depth = self.architecture['depth']
        check(
            isinstance(number, (int, np.integer)) and 1 <= abs(number) <= depth,
            f'there is no layer {number}: this encoder has layers 1 to {depth}, or from the last '
            f'one, -1, to -{depth}.',
        )
        return int(number) if number > 0 else int(number) + depth + 1

    def export(self, path: str | Path, format: str) -> None:
        """Writes a new folder that others load, with a model card. Warns of what is left out.

        format: 'huggingface', 'timm' or 'unilm' (the official code), for PyTorch; 'stablehlo', for
          JAX alone.

        Raises:
          RequestError: there is something already, or the library has no such model.
        """
        one_of('format', format, FORMATS)
        exported, _ = write_export(self, local_path('path', str(path)), format)
        for note in exported.notes[len(self.notes) :]:  # of the others it was warned by `load`
            warnings.warn(note, stacklevel=2)

    def programs(self) -> dict[str, Callable]:
        """What is computed, by the name of the method: functions of (params, pictures), jitted."""

        def features(params, images):
            return self._features(params, images, tuple(range(self.architecture['depth'])), False)

        made = {'features': features}
        if segments(self.architecture):
            return {'segment': self._segment} | made
        if predicts_tokens(self.architecture):
            return {'tokens': self._tokens} | made
        return ({'logits': self._logits} if self.architecture['num_classes'] else {}) | made

    def _checked(self, images, any_size: bool = False):
        (height, width), channels = self.shape, self.pixels.num_channels
        stored = self.pixels.dtype
        wanted = f'this model takes an array of {stored}, or of float in [0, 1], '
        if any_size:
            wanted += f'[B, H, W, {channels}]'
        else:
            wanted += f'[B, {height}, {width}, {channels}]; its preprocess makes that of any images'
        check(
            isinstance(images, (np.ndarray, jax.Array)),
            f'images are a {type(images).__name__}: {wanted}.',
        )
        shape, dtype = images.shape, images.dtype
        check(
            dtype == stored or jnp.issubdtype(dtype, jnp.floating),
            f'images of type {dtype}: {wanted}.',
        )
        pictures = len(shape) == 4 and min(shape) > 0 and shape[3] == channels
        fitting = any_size or shape[1:3] == (height, width)
        check(pictures and fitting, f'images of shape {shape}: {wanted}.')
        # those on a device are not fetched for it
        if dtype != stored and not isinstance(images, jax.Array):
            check(
                bool(np.min(images) >= 0) and bool(np.max(images) <= 1),
                f'images from {np.min(images):g} to {np.max(images):g}: give {stored}, '
                'or float in [0, 1]; they are normalised here.',
            )
        return images

    def _normalize(self, images):
        return normalize(to_float(images), self.architecture['mean'], self.architecture['std'])

    @functools.cached_property
    def _logits(self):
        def logits(params, images):
            logits_BC = nnx.merge(self.graphdef, params)(self._normalize(images))
            if 'targets' not in self.architecture:
                return logits_BC
            mean_C, std_C = statistics(self.architecture)
            return logits_BC * std_C + mean_C

        return jax.jit(logits)

    @functools.cached_property
    def _segment(self):
        def segment(params, images):
            architecture, (_, height, width, _) = self.architecture, images.shape
            patch, positions = architecture['patch_size'], architecture['positions']
            grid = rows, columns = max(2, -(-height // patch)), max(2, -(-width // patch))
            below, right = rows * patch - height, columns * patch - width
            pixels = jnp.pad(self._normalize(images), ((0, 0), (0, below), (0, right), (0, 0)))
            encoder, _ = fit_positions(params['encoder'], self.grid, positions, grid)
            graphdef, _ = abstract(architecture | {'grid': grid}, dtype=self.dtype)
            logits, *_ = nnx.merge(graphdef, params | {'encoder': encoder})(pixels)
            return resize(logits, (rows * patch, columns * patch))[:, :height, :width]

        return jax.jit(segment)

    @functools.cached_property
    def _tokens(self):
        def tokens(params, images):
            model = nnx.merge(self.graphdef, params)
            x_BND = model.encoder(self._normalize(images))
            return jnp.argmax(model.head(x_BND[:, 1:]), axis=-1)

        return jax.jit(tokens)

    @functools.cached_property
    def _features(self):
        def features(params, images, layers, patches):
            def of_block(x_BND):
                x_BhwD = x_BND[:, 1:].reshape(x_BND.shape[0], *self.grid, -1).astype(jnp.float32)
                return pool_both(x_BND) | ({'patches': x_BhwD} if patches else {})

            encoder = nnx.merge(self.graphdef, params).encoder
            made = encoder(self._normalize(images), every_layer=of_block)
            return {name: x_LB[np.array(layers, int)] for name, x_LB in made.items()}

        return jax.jit(features, static_argnums=(2, 3))

    @functools.cached_property
    def _attention(self):
        def attention(params, images, layer):
            encoder = nnx.merge(self.graphdef, params).encoder
            return encoder.attention(self._normalize(images), layer)

        return jax.jit(attention, static_argnums=2)


def load_model(path: str | Path, dtype='float32') -> Model:
    """The model of anything that holds a BEiT.

    Args:
      path: a checkpoint, a work directory, a .pth, .bin or .safetensors file of the official code,
        timm or transformers, a folder with one, or a repository of the hub (see `hub`).
      dtype: of the products and of the residual stream, 'float32' or 'bfloat16', or the type.

    Raises:
      RequestError: nothing of that, damaged, or refused.
    """
    dtype = dtype if isinstance(dtype, str) else getattr(dtype, '__name__', str(dtype))
    one_of('dtype', dtype, COMPUTE_DTYPES)
    path = os.path.expanduser(path)
    params, description = load_weights(path)
    architecture = description['architecture']
    check_encodes(architecture, str(path))
    graphdef, wanted = abstract(architecture, dtype=dtype)
    check_params(wanted, params, str(path))
    return Model(
        description=description, params=params, path=str(path), graphdef=graphdef, dtype=dtype
    )


def pad_rows(images: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the first picture until there are `rows`.

    So one compiled shape serves the last batch too.
    """
    return np.concatenate([images, np.repeat(images[:1], rows - len(images), axis=0)])
