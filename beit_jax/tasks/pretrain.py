"""BEiT pre-training (paper, section 2.3): predict the visual tokens of the patches that are hidden.

One step: the tokenizer turns the small view of an image into tokens (`prepare`); patches of the
large view, which was jittered alike, are hidden, the rest is encoded, and the loss is the
cross-entropy over the hidden tokens.

The ablations (section 3.3, Table 4) are settings: `mask.kind` is random or none, `predict` all
patches, `target` pixels. Pixels are here normalised patch by patch, where the paper regresses them
as they are; then there is no tokenizer. Shape legend: B images, S side in pixels, P patches, K
slots, V vocabulary, or the values of a patch.
"""

import dataclasses
from typing import Annotated, Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from beit_jax.data.config import one_size, sides
from beit_jax.errors import check, one_of
from beit_jax.images.color import jitter_views, normalize, patch_statistics, to_float
from beit_jax.images.masking import MaskConfig, Masks, draw_masks
from beit_jax.models.architecture import cls_head_config, patch_target
from beit_jax.models.heads import ClsHeadConfig, MaskedImageModel
from beit_jax.models.patches import patchify
from beit_jax.models.tokenizers import PRECISIONS, Tokenizer
from beit_jax.settings.intervals import Interval, Shown, Side
from beit_jax.tasks import EncoderRunConfig, Task, check_encoder, read_once, without_cls_head
from beit_jax.tasks.tokenizer import token_statistics
from beit_jax.tasks.tokenizer_quality import far_from
from beit_jax.weights.channels import fit_channels
from beit_jax.weights.tokenizer import fingerprint, load_tokenizer

LOOKED_AT = 64  # pictures that the tokenizer is asked to draw
TARGETS, PREDICTED = ('tokens', 'pixels'), ('masked', 'all')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    path: str = ''  # a directory with tokenizer.safetensors
    # float32 | bfloat16_3x (float32 but on a TPU) | tensorfloat32, float16 (for a GPU) | bfloat16
    precision: str = 'bfloat16_3x'
    # side in pixels (or height and width) of the pictures it is shown; 0: what it was made for
    image_size: Annotated[int, Interval(0, 2**14)] | tuple[Side, Side] = 0
    # epochs after which views repeat and tokens are read from a cache instead of computed; 0: no
    # cache
    cache_views: Annotated[int, Interval(0, 10_000)] = 0
    cache_path: str = ''  # directory of the cache; '' is WORKDIR/tokens

    def __post_init__(self):
        one_of('config.tokenizer.precision', self.precision, PRECISIONS)
        check(
            '://' not in self.cache_path,
            f'config.tokenizer.cache_path={self.cache_path!r} is not local: give a local folder.',
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderRunConfig):
    task: str = 'pretrain'
    target: str = 'tokens'  # tokens | pixels (normalised; config.tokenizer is not read then)
    predict: str = 'masked'  # masked | all: the patches that the loss is on
    mask: MaskConfig = MaskConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    cls_head: ClsHeadConfig = ClsHeadConfig()
    pictures: Shown = 0  # held-out pictures that are drawn, reconstructed, at each evaluation

    def __post_init__(self):
        super().__post_init__()
        self.cls_head.check_depth(self.model.depth)
        check(
            self.target == 'tokens' or not self.cls_head.layers,
            'config.cls_head predicts tokens, but config.target is pixels: set '
            'config.cls_head.layers=0.',
        )
        one_of('config.target', self.target, TARGETS)
        one_of('config.predict', self.predict, PREDICTED)
        check(
            self.mask.kind != 'none' or self.predict == 'all',
            'config.mask.kind=none hides nothing that config.predict=masked could '
            'predict: set config.predict=all, or another config.mask.kind.',
        )
        self.mask.check_grid(self.grid)
        self.data.check_jitter()
        views = self.tokenizer.cache_views
        check(
            not views or self.target == 'tokens',
            f'config.tokenizer.cache_views is {views}, but config.target=pixels has no tokens to '
            'cache: set it to 0.',
        )
        if views and not self.data.repeat_views:
            object.__setattr__(self, 'data', dataclasses.replace(self.data, repeat_views=views))
        check(
            not views or views == self.data.repeat_views,
            f'config.tokenizer.cache_views is {views} but views repeat every '
            f'config.data.repeat_views={self.data.repeat_views} epochs: leave one of them 0, or '
            'set both alike.',
        )


@dataclasses.dataclass(frozen=True)
class Pretrain(Task):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    tokenizer: Tokenizer | None  # None: pixels are predicted
    graphdef: nnx.GraphDef
    frozen: Any  # the tokenizer's parameters

    @property
    def views(self):
        return (self.config.data.view('image'),)

    @property
    def prepare_views(self):
        if not self.tokenizer:
            return ()
        size = one_size(*(side * self.tokenizer.factor for side in self.config.grid))
        view = self.config.data.view('token_image', size, self.tokenizer.resampling)
        return (read_once(view, self.views),)

    @property
    def token_cache(self):
        return self.config.tokenizer if self.config.tokenizer.cache_views else None

    def fingerprint(self):
        return fingerprint(self.tokenizer, self.frozen) if self.tokenizer else ''

    def build(self, rngs):
        return _build(self.config, self.tokenizer, rngs)

    def adapt(self, params, description, classes, source):
        """As it is, but for the channels of the pictures: a run starts from a checkpoint of the
        same model."""
        architecture = description['architecture']
        check_encoder(architecture, self.config.model, source)
        target, found = patch_target(architecture), architecture.get('vocabulary')
        check(
            target in ('', self.config.target),
            f'{source} predicts {target}, config.target is {self.config.target}: set '
            f'config.target={target}, or give another checkpoint.',
        )
        wanted = self.tokenizer.vocabulary if self.tokenizer else None
        check(
            not found or wanted == found,
            f'the head of {source} predicts {found} tokens, the tokenizer of this run has '
            f'{wanted}: give config.tokenizer.path the tokenizer that it was trained with.',
        )
        params, fresh, notes = self._adapt_cls_head(params, architecture, source)
        channels, new = architecture['channels'], self.config.model.channels
        if channels == new:
            return params, fresh, notes
        encoder, more = fit_channels(params['encoder'], channels, new)
        params, notes = params | {'encoder': encoder}, notes + more
        if target == 'pixels':  # the head draws them
            params['head'] = {'norm': params['head']['norm']}
            fresh = ('head/projection',)
            notes.append(f'the head of {source} for {channels} channels starts afresh')
        return params, fresh, notes

    def remarks(self, first):
        """Whether the tokenizer draws these pictures far worse than its own."""
        if not self.tokenizer:
            return []
        (view,) = self.prepare_views
        pictures = lambda: to_float(first()[view.name][:LOOKED_AT])
        return far_from(self.tokenizer, self.config.tokenizer.path, pictures, self.config.data)

    def _adapt_cls_head(self, params, architecture, source):
        """What `adapt` gives, of the head that pre-trains CLS."""
        theirs, ours = cls_head_config(architecture), self.config.cls_head
        if not ours.layers:
            return without_cls_head(params, source)
        if not theirs.layers:
            note = f'config.cls_head, which {source} has not, starts afresh'
            return params, ('cls_head',), [note]
        check(
            theirs == ours,
            f'{source} has cls_head {theirs.layers} layers after block {theirs.early}, shared '
            f'{theirs.shared}: set config.cls_head so.',
        )
        return params, (), []

    def prepare(self, frozen, batch, *, train):
        """{'tokens': uint16 [B, P]} of the clean picture."""
        picture_BSS3 = self._picture(batch, self.prepare_views[0].name, train)
        return {'tokens': self.tokenizer.encode(frozen, picture_BSS3).astype(jnp.uint16)}

    def _picture(self, batch, name, train):
        """Pixels in [0, 1], float32 [B, height, width, C]; the number of the view decides the
        colours, so that all pictures of a view agree."""
        images_BSS3, config = to_float(batch[name]), self.config
        if not train:
            return images_BSS3
        return jitter_views(config.seed, batch, images_BSS3, config.data.color_jitter)

    def draw_masks(self, keys_B) -> Masks:
        """What is hidden, and in the slots what is predicted: that, or every patch."""
        masks = draw_masks(keys_B, self.config.mask, self.config.grid)
        if self.config.predict == 'masked':
            return masks
        shape = masks.mask_BP.shape
        every_BP = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return masks._replace(slots_BK=every_BP, weights_BK=jnp.ones(shape))

    def loss(self, params, batch, keys_B, *, progress, train):
        mask_keys_B, drop_keys_B = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)
        image_BSS3 = self._picture(batch, 'image', train)
        mask_BP, slots_BK, weights_BK = self.draw_masks(mask_keys_B)
        model, data = nnx.merge(self.graphdef, params), self.config.data
        pixels_BSS3 = normalize(image_BSS3, data.mean, data.std)
        inputs, keys_B = (pixels_BSS3, mask_BP, slots_BK), drop_keys_B if train else None
        weights_BK = weights_BK * batch['valid'][:, None]
        if self.config.cls_head.layers:
            outputs_BKV, more_BKV = model.both(*inputs, keys_B=keys_B)
        else:
            outputs_BKV = model(*inputs, keys_B=keys_B)
        if self.tokenizer:
            losses_BK, sums = self._token_losses(outputs_BKV, batch['tokens'], slots_BK, weights_BK)
        else:
            losses_BK, sums = self._pixel_losses(outputs_BKV, image_BSS3, slots_BK), {}
        loss = jnp.sum(losses_BK * weights_BK)
        if self.config.cls_head.layers:
            losses_BK, of_cls = self._token_losses(more_BKV, batch['tokens'], slots_BK, weights_BK)
            sums |= {'cls_loss': jnp.sum(losses_BK * weights_BK), 'cls_correct': of_cls['correct']}
            loss += sums['cls_loss']
        sums |= {'loss': loss, 'weight': jnp.sum(weights_BK), 'images': jnp.sum(batch['valid'])}
        if self.config.predict == 'all':
            sums['masked'] = jnp.sum(mask_BP * batch['valid'][:, None])
        return loss, sums

    def _token_losses(self, logits_BKV, tokens_BP, slots_BK, weights_BK):
        """(cross-entropies, float32 [B, K], sums of what metrics need besides)."""
        targets_BK = jnp.take_along_axis(tokens_BP.astype(jnp.int32), slots_BK, axis=1)
        label_logits_BK = jnp.take_along_axis(logits_BKV, targets_BK[..., None], axis=-1)[..., 0]
        losses_BK = optax.softmax_cross_entropy_with_integer_labels(logits_BKV, targets_BK)
        right_BK = label_logits_BK >= jnp.max(logits_BKV, axis=-1)  # one pass less than argmax
        counts_V = jnp.zeros(self.tokenizer.vocabulary).at[targets_BK].add(weights_BK)
        return losses_BK, {'correct': jnp.sum(right_BK * weights_BK), 'token_counts': counts_V}

    def _pixel_losses(self, outputs_BKV, image_BSS3, slots_BK):
        """Mean squared errors, float32 [B, K], from patches less their mean and divided by their
        deviation."""
        patches_BPV = patchify(image_BSS3, self.config.model.patch_size)
        patches_BKV = jnp.take_along_axis(patches_BPV, slots_BK[..., None], axis=1)
        mean_BK1, deviation_BK1 = patch_statistics(patches_BKV)
        return jnp.mean(jnp.square(outputs_BKV - (patches_BKV - mean_BK1) / deviation_BK1), axis=-1)

    def summarize(self, sums):
        """All but `masked_patches`, which are the hidden ones of an image, is over the patches that
        are predicted. `loss` is the mean cross-entropy, or for pixels the mean squared error, which
        is the share of their variance that is not explained. `majority_accuracy` is that of always
        guessing the most frequent token. With `cls_head` the loss has `cls_loss`, its
        cross-entropy, in it."""
        metrics = {
            'loss': sums['loss'] / sums['weight'],
            'masked_patches': sums.get('masked', sums['weight']) / sums['images'],
        }
        if self.tokenizer:
            metrics['token_accuracy'] = sums['correct'] / sums['weight']
            metrics['majority_accuracy'] = jnp.max(sums['token_counts']) / sums['weight']
            metrics |= token_statistics(sums['token_counts'])
        if 'cls_loss' in sums:
            metrics['cls_loss'] = sums['cls_loss'] / sums['weight']
            metrics['cls_token_accuracy'] = sums['cls_correct'] / sums['weight']
        return metrics

    def describe(self):
        data = self.config.data
        said = {'vocabulary': self.tokenizer.vocabulary} if self.tokenizer else {}
        if self.config.cls_head.layers:
            said['cls_head'] = dataclasses.asdict(self.config.cls_head)
        return {
            'architecture': 'beit_masked_image_model',
            **dataclasses.asdict(self.config.model),
            'grid': self.config.grid,
            'target': self.config.target,
            **said,
            **data.describe(),
        }


def _build(config: Config, tokenizer: Tokenizer | None, rngs: nnx.Rngs) -> MaskedImageModel:
    outputs = tokenizer.vocabulary if tokenizer else config.model.patch_values
    return MaskedImageModel(
        config.model,
        config.grid,
        outputs,
        cls_head=config.cls_head,
        dtype=config.compute_dtype,
        rngs=rngs,
    )


@dataclasses.dataclass(frozen=True)
class GivenTokens:
    """Stands in for a tokenizer where every batch brings its tokens."""

    vocabulary: int = 8192
    factor: int = 8  # pixels per token: DALL-E's
    resampling: str = 'lanczos3'


def make_on_given_tokens(
    config: Config, tokenizer: Tokenizer | GivenTokens | None = GivenTokens()
) -> Pretrain:
    """The task without the parameters of its tokenizer: its steps take batches that have `tokens`
    already. None: pixels are predicted."""
    model = nnx.eval_shape(lambda: _build(config, tokenizer, nnx.Rngs(0)))
    return Pretrain(config, tokenizer, nnx.graphdef(model), None)


def _text(size: int | tuple[int, int]) -> str:
    """As the command line takes it."""
    return str(size) if isinstance(size, int) else f'{size[0]},{size[1]}'


def make(config: Config) -> Pretrain:
    if config.target == 'pixels':
        return make_on_given_tokens(config, None)
    check(
        bool(config.tokenizer.path),
        'config.tokenizer.path is empty: give the directory of a tokenizer '
        '(python main.py --config=configs/quickstart/tokenizer.py --workdir=W writes W/tokenizer).',
    )
    tokenizer, frozen = load_tokenizer(config.tokenizer.path, config.tokenizer.precision)
    count, factor, (rows, columns) = config.data.pixels.num_channels, tokenizer.factor, config.grid
    check(
        tokenizer.channels == count,
        f'the tokenizer {config.tokenizer.path} is for pictures of {tokenizer.channels} channels, '
        f'config.data reads {count}: fit one to these (python -m beit_jax.tools.fit_tokenizer, '
        'or main.py --config=configs/tokenizer_imagenet1k.py).',
    )
    height, width = sides(config.tokenizer.image_size or tokenizer.image_size)
    wanted = one_size(rows * factor, columns * factor)
    check(
        one_size(height, width) == wanted,
        f'the tokenizer {config.tokenizer.path} cuts {_text(one_size(height, width))} pixels into '
        f'cells of {factor}, {height / factor:g} x {width / factor:g} tokens, but the encoder has '
        f'{rows} x {columns} patches (config.data.image_size={_text(config.data.image_size)}, '
        f'config.model.patch_size={config.model.patch_size}): change these, or set '
        f'config.tokenizer.image_size={_text(wanted)}.',
    )
    return dataclasses.replace(make_on_given_tokens(config, tokenizer), frozen=frozen)
