"""BEiT pre-training (paper, section 2.3): predict the visual tokens of the patches that are hidden.

One step: jitter both views alike, let the tokenizer turn the clean small view into tokens, hide patches of the large view, encode it, and
take the cross-entropy over the hidden tokens. Shape legend: B images, S side in pixels, P patches, K masked slots, V vocabulary.
"""
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from beit_jax.config import COMPUTE_DTYPES, RunConfig, check, one_of
from beit_jax.data.config import DataConfig, View
from beit_jax.images.color import jitter, normalize, to_float
from beit_jax.images.masking import MaskConfig, draw_masks
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import MaskedImageModel
from beit_jax.models.tokenizers import Tokenizer
from beit_jax.tasks.tokenizer import token_statistics
from beit_jax.weights.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    path: str = ''  # a directory with tokenizer.safetensors
    compute_dtype: str = 'float32'

    def __post_init__(self):
        one_of('config.tokenizer.compute_dtype', self.compute_dtype, COMPUTE_DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    task: str = 'pretrain'
    data: DataConfig = DataConfig()
    model: EncoderConfig = EncoderConfig()
    mask: MaskConfig = MaskConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self):
        super().__post_init__()
        self.mask.check_grid(self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.grid(self.data.image_size, self.data.image_size)


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """The task: see `beit_jax.tasks.Task`."""
    config: Config
    tokenizer: Tokenizer
    frozen: Any  # the tokenizer's parameters
    graphdef: nnx.GraphDef

    @property
    def views(self):
        return (View('image', self.config.data.image_size, 'bicubic'),
                View('token_image', self.config.grid[0] * self.tokenizer.factor, 'lanczos3'))

    def build(self, rngs):
        return _build(self.config, self.tokenizer.vocabulary, rngs)

    def loss(self, params, frozen, batch, keys_B, *, progress, train):
        jitter_keys_B, mask_keys_B, drop_keys_B = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys_B), 1, 0)
        image_BSS3, token_image_BSS3 = to_float(batch['image']), to_float(batch['token_image'])
        if train:
            image_BSS3, token_image_BSS3 = jitter(jitter_keys_B, (image_BSS3, token_image_BSS3), self.config.data.color_jitter)
        tokens_BP = self.tokenizer.encode(frozen, token_image_BSS3)
        mask_BP, slots_BK, weights_BK = draw_masks(mask_keys_B, self.config.mask, self.config.grid)
        logits_BKV = nnx.merge(self.graphdef, params)(normalize(image_BSS3, self.config.data.mean, self.config.data.std), mask_BP, slots_BK,
                                                     keys_B=drop_keys_B if train else None)
        targets_BK = jnp.take_along_axis(tokens_BP, slots_BK, axis=1)
        weights_BK = weights_BK * batch['valid'][:, None]
        loss = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits_BKV, targets_BK) * weights_BK)
        sums = {'loss': loss, 'weight': jnp.sum(weights_BK), 'images': jnp.sum(batch['valid']),
                'correct': jnp.sum((jnp.argmax(logits_BKV, -1) == targets_BK) * weights_BK),
                'token_counts': jnp.zeros(self.tokenizer.vocabulary).at[targets_BK].add(weights_BK)}
        return loss, sums

    def summarize(self, sums):
        """`token_accuracy` and `loss` are over masked tokens; `majority_accuracy` is that of always guessing their most frequent one."""
        return {'loss': sums['loss'] / sums['weight'], 'token_accuracy': sums['correct'] / sums['weight'],
                'majority_accuracy': jnp.max(sums['token_counts']) / sums['weight'],
                'masked_patches': sums['weight'] / sums['images']} | token_statistics(sums['token_counts'])

    def describe(self):
        data = self.config.data
        return {'architecture': 'beit_masked_image_model', **dataclasses.asdict(self.config.model), 'grid': self.config.grid,
                'vocabulary': self.tokenizer.vocabulary, 'image_size': data.image_size, 'mean': data.mean, 'std': data.std}

    def finish(self, params, workdir: Path):
        """Nothing but the checkpoint is owed."""


def _build(config: Config, vocabulary: int, rngs: nnx.Rngs) -> MaskedImageModel:
    return MaskedImageModel(config.model, config.grid, vocabulary, dtype=config.compute_dtype, rngs=rngs)


def make(config: Config) -> Pretrain:
    check(bool(config.tokenizer.path), 'config.tokenizer.path is empty: give the directory of a tokenizer '
          '(python main.py --config=configs/quickstart/tokenizer.py --workdir=W writes W/tokenizer).')
    tokenizer, frozen = load_tokenizer(config.tokenizer.path, dtype=config.tokenizer.compute_dtype)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: _build(config, tokenizer.vocabulary, nnx.Rngs(0))))
    return Pretrain(config, tokenizer, frozen, graphdef)
