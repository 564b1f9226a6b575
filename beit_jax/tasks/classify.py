"""Fine-tuning for classification (paper, section 2.5; run_class_finetuning.py), or the same
training from random weights.

The encoder of a checkpoint, its positions fitted to this model's, gets a head on the mean of its
patches. The host crops and augments one picture after the other; the device erases, mixes pairs and
mixes their targets alike. Shape legend: B images, S side in pixels, C classes.
"""

import dataclasses
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.rand_augment import parse_policy
from beit_jax.errors import check, one_of
from beit_jax.images.color import jitter_views, normalize, to_float
from beit_jax.images.mixing import MixConfig, draw_weights, erase, mix
from beit_jax.models.architecture import PROBLEM_TYPES, problem_type, segments
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import POOLINGS, Classifier
from beit_jax.settings.intervals import Interval, Share, ShareBelow1
from beit_jax.tasks import LabelledRunConfig, Task, check_encoder, without_cls_head
from beit_jax.weights.channels import fit_channels
from beit_jax.weights.class_names import first_difference
from beit_jax.weights.positions import fit_positions

TOP = 5
SAME_CLASSES = ', set config.same_classes=true where these are they in the same order'
_ERASE = 0x657261  # sets the key of the rectangle apart from that of stochastic depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LabelledRunConfig):
    task: str = 'classify'
    model: EncoderConfig = EncoderConfig(positions='layer_bias')
    pooling: str = 'mean'  # mean | cls
    # what the head's initial kernel is multiplied by
    head_scale: Annotated[float, Interval(0, 1000, '(]')] = 0.001
    new_head: bool = False  # start with a fresh head where `init` has one for other classes
    # the classes of `init` are this run's, in this order, under other names
    same_classes: bool = False
    label_smoothing: ShareBelow1 = 0.1  # the share of a label that all classes get alike
    # timm's notation: rand-m9-mstd0.5-inc1; '': none, and data.color_jitter instead
    rand_augment: str = ''
    erase: Share = 0.25  # probability that a rectangle of a picture is replaced by noise
    mix: MixConfig = MixConfig()

    def __post_init__(self):
        super().__post_init__()
        one_of('config.pooling', self.pooling, POOLINGS)
        self.mix.check_batch(self.batch_size)
        if not self.rand_augment:
            self.data.check_jitter()
            return
        parse_policy(self.rand_augment)
        check(
            self.data.bits == 8 and self.data.pixels.num_channels == 3,
            f'config.rand_augment={self.rand_augment!r} changes the colours of RGB of 8 bits: for '
            "other pictures leave it '' (--config.rand_augment=).",
        )


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    graphdef: nnx.GraphDef

    @property
    def views(self):
        return (self.config.data.view('image', 0, 'bicubic', self.config.rand_augment),)

    def build(self, rngs):
        return _build(self.config, rngs)

    def adapt(self, params, description, classes, source):
        """The encoder with its positions fitted, and the head where it is for the same classes;
        else of the head its norm, where that is of what this one pools."""
        architecture, config = description['architecture'], self.config
        encoder, notes = adapt_encoder(params, architecture, config, source)
        differences = pixel_differences(architecture, config.data, source)
        notes += [f'warning: {difference}' for difference in differences]
        head, named = params.get('head', {}), description.get('classes') or ()
        width = 0 if segments(architecture) else architecture.get('num_classes', 0)
        one_each = not width or problem_type(architecture) == PROBLEM_TYPES[0]
        check(
            one_each or config.new_head,
            f'the head of {source} is of {problem_type(architecture)}, this run gives each image '
            'one class: set config.new_head=true to start with a fresh head.',
        )
        # the norm of pre-training, of all tokens, is the one that CLS goes through when it is read
        pooling = architecture.get('pooling', 'cls')
        as_many = one_each and width == config.num_classes
        differing = first_difference(named, classes) if named else None
        if as_many and (differing is None or config.same_classes):
            check(
                pooling == config.pooling,
                f'the head of {source} reads {pooling!r}, config.pooling is {config.pooling!r}: '
                'set it so.',
            )
            if differing is not None:
                notes.append(
                    f'the classes of {source} have other names ({named[0]}, ...): taken as '
                    'the same, by config.same_classes'
                )
            return {'encoder': encoder, 'head': head}, (), notes
        if width:
            self._check_new_head(width, named, classes, source)
            notes.append(
                f'the head of {source}, for {width} classes, is replaced by a fresh one for '
                f'{config.num_classes}'
            )
        if pooling == config.pooling and head.get('norm'):
            notes.append(f'the norm before the head is the last one of {source}')
            return {'encoder': encoder, 'head': {'norm': head['norm']}}, ('head/classes',), notes
        return {'encoder': encoder}, ('head',), notes

    def _check_new_head(self, width: int, named, classes, source: str) -> None:
        """Refuses to replace a head for other classes unasked."""
        differing = first_difference(named, classes) if named else None
        first = ''
        if differing is not None and differing < min(len(named), len(classes)):
            theirs, ours = named[differing], classes[differing]
            first = f', class {differing} of which is {theirs!r}; in this run it is {ours!r}'
        check(
            self.config.new_head,
            f'the head of {source} is for {width} classes{first}; this run has '
            f'{self.config.num_classes}: give the classes that it was trained on'
            f'{SAME_CLASSES * (width == self.config.num_classes)}, or set config.new_head=true to '
            'start with a fresh head.',
        )

    def augment(self, batch, key, keys_B):
        """`image` float32 [B, height, width, channels], normalised, and `target` float32 [B, C] in
        place of what was read."""
        config = self.config
        data, images_BSS3 = config.data, to_float(batch['image'])
        if not config.rand_augment:
            images_BSS3 = jitter_views(config.seed, batch, images_BSS3, data.color_jitter)
        images_BSS3 = normalize(images_BSS3, data.mean, data.std)
        erase_keys_B = jax.vmap(lambda row_key: jax.random.fold_in(row_key, _ERASE))(keys_B)
        images_BSS3 = erase(erase_keys_B, images_BSS3, config.erase)
        labels_BC = jax.nn.one_hot(batch['label'], config.num_classes)
        targets_BC = optax.smooth_labels(labels_BC, config.label_smoothing)
        if config.mix.mixup or config.mix.cutmix:
            weights = draw_weights(key, config.mix, *images_BSS3.shape[1:3])
            images_BSS3, targets_BC = mix(weights, images_BSS3, targets_BC)
        return batch | {'image': images_BSS3, 'target': targets_BC}

    def loss(self, params, batch, keys_B, *, progress, train):
        config, model, valid_B = self.config, nnx.merge(self.graphdef, params), batch['valid']
        if train:
            logits_BC, targets_BC = model(batch['image'], keys_B=keys_B), batch['target']
            labels_B = jnp.argmax(targets_BC, axis=-1)
        else:
            pixels = normalize(to_float(batch['image']), config.data.mean, config.data.std)
            logits_BC, labels_B = model(pixels), batch['label']
            targets_BC = jax.nn.one_hot(labels_B, config.num_classes)
        loss = jnp.sum(optax.softmax_cross_entropy(logits_BC, targets_BC) * valid_B)
        sums = {
            'loss': loss,
            'weight': jnp.sum(valid_B),
            'top1': jnp.sum((jnp.argmax(logits_BC, axis=-1) == labels_B) * valid_B),
        }
        if train:
            return loss, sums
        top = min(TOP, config.num_classes)
        probabilities_BT, classes_BT = jax.lax.top_k(jax.nn.softmax(logits_BC), top)
        sums['top5'] = jnp.sum((classes_BT == labels_B[:, None]) * valid_B[:, None])
        rows = {'label': labels_B, 'valid': valid_B}
        sums['rows'] = rows | {'classes': classes_BT, 'probabilities': probabilities_BT}
        return loss, sums

    def summarize(self, sums):
        """`accuracy` is top-1; in training it is that of the label with the larger share of a mixed
        picture."""
        metrics = {'loss': sums['loss'] / sums['weight'], 'accuracy': sums['top1'] / sums['weight']}
        if 'top5' in sums:
            metrics['top5_accuracy'] = sums['top5'] / sums['weight']
            metrics['images'] = sums['weight']
        return metrics

    def describe(self):
        config, data = self.config, self.config.data
        return {
            'architecture': 'beit_classifier',
            **dataclasses.asdict(config.model),
            'grid': config.grid,
            'num_classes': config.num_classes,
            'pooling': config.pooling,
            'crop': data.evaluate_crop,
            **data.describe(),
        }


def adapt_encoder(params, architecture: dict, config, source: str) -> tuple[dict, list[str]]:
    """The encoder of a checkpoint for a model that hides nothing, positions fitted to
    `config.model` and `config.grid`, and what was done.

    Raises:
      RequestError: a checkpoint of something else, or one that differs in what no shape of an array
        shows.
    """
    check_encoder(architecture, config.model, source)
    _, _, left_out = without_cls_head(params, source)
    encoder = {name: value for name, value in params['encoder'].items() if name != 'mask_token'}
    encoder, notes = fit_channels(encoder, architecture['channels'], config.model.channels)
    positions = config.model.positions
    encoder, more = fit_positions(encoder, architecture['grid'], positions, config.grid)
    return encoder, left_out + notes + more


def pixel_differences(architecture: dict, data: DataConfig, source: str) -> list[str]:
    """How the pixels that a checkpoint was trained on were read or normalised otherwise than `data`
    says, in words."""
    differences, stored = [], architecture.get('pixels') or {}
    bands = tuple(stored.get('bands', data.bands))
    if stored.get('channels') == data.channels and bands != data.bands:
        differences.append(f'{source} read channels {bands}, config.data.bands is {data.bands}')
    for name in ('mean', 'std'):
        theirs, ours = tuple(architecture[name]), getattr(data, name)
        if theirs != ours:
            line = f'{source} saw pixels with {name} {theirs}, config.data.{name} is {ours}'
            differences.append(line)
    return differences


def _build(config: Config, rngs: nnx.Rngs) -> Classifier:
    return Classifier(
        config.model,
        config.grid,
        config.num_classes,
        pooling=config.pooling,
        head_scale=config.head_scale,
        dtype=config.compute_dtype,
        rngs=rngs,
    )


def make(config: Config) -> Classify:
    return Classify(config, nnx.graphdef(nnx.eval_shape(lambda: _build(config, nnx.Rngs(0)))))
