"""A model from a checkpoint alone: its description says what to build and how to show it pictures."""
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.config import check, one_of
from beit_jax.images.color import normalize, to_float
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import Classifier, MaskedImageModel, pool_both
from beit_jax.weights.checkpoint import check_params, load_params

ARCHITECTURES = ('beit_masked_image_model', 'beit_classifier')


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with its head. Pictures are uint8 [B, S, S, 3], S = image_size."""
    description: dict  # that of the checkpoint
    graphdef: nnx.GraphDef
    params: dict

    @property
    def architecture(self) -> dict:
        return self.description['architecture']

    @property
    def image_size(self) -> int:
        return self.architecture['image_size']

    @property
    def crop(self) -> float:
        """Side of the central square that the model is shown over the shorter side of a picture."""
        return self.architecture.get('crop', 1.0)

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.architecture['grid'])

    def logits(self, images) -> jax.Array:
        """float32 [B, C] of the classes."""
        check(self.architecture['architecture'] == 'beit_classifier', 'this checkpoint is of pre-training and has no classes: fine-tune it '
              'first, or ask for features or tokens.')
        return self._logits(self.params, images)

    def tokens(self, images) -> jax.Array:
        """The visual tokens that are predicted for all patches, nothing hidden, int32 [B, P]."""
        check(self.architecture['architecture'] == 'beit_masked_image_model', 'this checkpoint is of fine-tuning and predicts no tokens: ask '
              'for classes or features, or give one of pre-training.')
        return self._tokens(self.params, images)

    def features(self, images) -> dict[str, jax.Array]:
        """`cls` and `mean` (of the patches) after every block, before any norm, float32 [L, B, D]."""
        return self._features(self.params, images)

    def attention(self, images, layer: int) -> jax.Array:
        """How much each token of a layer (from 0) looks at each other one, CLS first, float32 [B, H, N, N]; rows sum to 1."""
        return self._attention(self.params, images, layer)

    def _normalize(self, images):
        return normalize(to_float(jnp.asarray(images)), self.architecture['mean'], self.architecture['std'])

    @functools.cached_property
    def _logits(self):
        return jax.jit(lambda params, images: nnx.merge(self.graphdef, params)(self._normalize(images)))

    @functools.cached_property
    def _tokens(self):
        def tokens(params, images):
            model = nnx.merge(self.graphdef, params)
            return jnp.argmax(model.head(model.encoder(self._normalize(images))[:, 1:]), axis=-1)
        return jax.jit(tokens)

    @functools.cached_property
    def _features(self):
        def features(params, images):
            return nnx.merge(self.graphdef, params).encoder(self._normalize(images), every_layer=pool_both)
        return jax.jit(features)

    @functools.cached_property
    def _attention(self):
        return jax.jit(lambda params, images, layer: nnx.merge(self.graphdef, params).encoder.attention(self._normalize(images), layer),
                       static_argnums=2)


def load_model(path: str, dtype: str = 'float32') -> Model:
    """The model of a checkpoint or of a work directory, of pre-training or of fine-tuning; its moving average where the run kept one.

    Raises:
      RequestError: neither, or a checkpoint of something else.
    """
    params, description = load_params(path)
    architecture = description['architecture']
    one_of(f'the architecture of {path}', architecture['architecture'], ARCHITECTURES)
    config = EncoderConfig(**{field.name: architecture[field.name] for field in dataclasses.fields(EncoderConfig)})
    grid = tuple(architecture['grid'])

    def build():
        if architecture['architecture'] == 'beit_classifier':
            return Classifier(config, grid, architecture['num_classes'], pooling=architecture['pooling'], dtype=dtype, rngs=nnx.Rngs(0))
        return MaskedImageModel(config, grid, architecture['vocabulary'], dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, abstract = nnx.split(nnx.eval_shape(build))
    check_params(nnx.to_pure_dict(abstract), params, path)
    return Model(description, graphdef, params)


def pad_rows(images: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the first picture until there are `rows`, so that one compiled shape serves the last batch too."""
    return np.concatenate([images, np.repeat(images[:1], rows - len(images), axis=0)])
