"""Fine-tuning for classification (paper, section 2.5; run_class_finetuning.py), or the same
training from random weights.

The encoder of a checkpoint, its positions fitted to this model's, gets a head on the mean of its
patches. The host crops and augments one picture after the other; the device erases, mixes pairs and
mixes their targets alike. Shape legend: B images, S side in pixels, C classes.
"""

import dataclasses
import functools
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax.data.config import LABELS, DataConfig
from beit_jax.data.pictures.rand_augment import parse_policy
from beit_jax.errors import check, one_of
from beit_jax.images.color import jitter_views, normalize, to_float
from beit_jax.images.mixing import MixConfig, draw_weights, erase, mix
from beit_jax.models.architecture import PROBLEM_TYPES, problem_type, segments
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import POOLINGS, Classifier
from beit_jax.settings.intervals import Interval, Share, ShareBelow1
from beit_jax.tasks import FineTune, FineTuneRunConfig, check_encoder, without_cls_head
from beit_jax.tasks.objectives import (
    REGRESSION_LOSSES,
    Numbers,
    Objective,
    OneClass,
    SeveralClasses,
)
from beit_jax.weights.channels import fit_channels
from beit_jax.weights.class_names import first_difference
from beit_jax.weights.positions import fit_positions
from beit_jax.weights.standardised import restandardised

# what the outputs are, by `config.data.labels`
PROBLEMS = dict(zip(LABELS, PROBLEM_TYPES, strict=True))
SAME_CLASSES = ', set config.same_classes=true where these are they in the same order'
_ERASE = 0x657261  # sets the key of the rectangle apart from that of stochastic depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FineTuneRunConfig):
    task: str = 'classify'
    model: EncoderConfig = EncoderConfig(positions='layer_bias')
    pooling: str = 'mean'  # mean | cls
    # what the head's initial kernel is multiplied by
    head_scale: Annotated[float, Interval(0, 1000, '(]')] = 0.001
    new_head: bool = False  # start with a fresh head where `init` has one for other classes
    # the classes of `init` are this run's, in this order, under other names
    same_classes: bool = False
    # the share of a label that all classes get alike; not of numbers (data.labels)
    label_smoothing: ShareBelow1 = 0.1
    regression_loss: str = 'mse'  # of numbers, standardised: mse | l1 | huber
    # what is taken from each number (data.labels=numbers); (): the mean of the training images
    target_mean: tuple[Annotated[float, Interval(-1e38, 1e38)], ...] = ()
    # what it is then divided by; (): the deviation of the training images
    target_std: tuple[Annotated[float, Interval(0, 1e38, '(]')], ...] = ()
    # timm's notation: rand-m9-mstd0.5-inc1; '': none, and data.color_jitter instead
    rand_augment: str = ''
    erase: Share = 0.25  # probability that a rectangle of a picture is replaced by noise
    mix: MixConfig = MixConfig()

    def __post_init__(self):
        super().__post_init__()
        one_of('config.pooling', self.pooling, POOLINGS)
        one_of('config.regression_loss', self.regression_loss, REGRESSION_LOSSES)
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

    def resolve(self, num_examples, class_names, label=None):
        resolved = super().resolve(num_examples, class_names, label)
        if self.data.labels != 'numbers':
            return resolved
        mean_C, std_C = self.target_mean, self.target_std
        if label and not (mean_C and std_C):
            labels_NC = np.stack([label(index) for index in range(num_examples)])
            mean_C = mean_C or labels_NC.mean(0, dtype=np.float64).tolist()
            # what rounding leaves of numbers that are all alike is no deviation
            varies_C = labels_NC.min(0) < labels_NC.max(0)
            std_C = std_C or (labels_NC.std(0, dtype=np.float64) * varies_C).tolist()
        count, statistics = len(class_names), {'target_mean': mean_C, 'target_std': std_C}
        for name, values in statistics.items():
            check(
                not label or len(values) == count,
                f'config.{name} has {len(values)} numbers, the images have {count} '
                f'({", ".join(class_names[:3])}): give one for each, or () for those of the '
                'training images.',
            )
            statistics[name] = tuple(values) or (float(name == 'target_std'),) * count
        same = [name for name, std in zip(class_names, statistics['target_std']) if not std]
        check(
            not same,
            f'{same and same[0]!r} is the same number in all training images, so there is nothing '
            'to learn: name other columns by config.data.label_field.',
        )
        return dataclasses.replace(resolved, **statistics)


@dataclasses.dataclass(frozen=True)
class Classify(FineTune):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    graphdef: nnx.GraphDef

    @functools.cached_property
    def objective(self) -> Objective:
        config, count = self.config, self.config.num_classes
        if config.data.labels == 'class':
            return OneClass(count)
        if config.data.labels == 'classes':
            return SeveralClasses(count)
        return Numbers(count, config.regression_loss, config.target_mean, config.target_std)

    @property
    def measure(self):
        return self.objective.measure

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
        ours = PROBLEMS[config.data.labels]
        alike = not width or problem_type(architecture) == ours
        check(
            alike or config.new_head,
            f'the head of {source} is of {problem_type(architecture)}, this run is of {ours} '
            f'(config.data.labels={config.data.labels}): set config.new_head=true to start with a '
            'fresh head.',
        )
        # the norm of pre-training, of all tokens, is the one that CLS goes through when it is read
        pooling = architecture.get('pooling', 'cls')
        as_many = alike and width == config.num_classes
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
            if 'targets' in self.describe():
                head = restandardised(head, architecture, self.describe())
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
        targets_BC = self.objective.targets(batch['label'])
        if self.objective.smooths:
            targets_BC = optax.smooth_labels(targets_BC, config.label_smoothing)
        if config.mix.mixup or config.mix.cutmix:
            weights = draw_weights(key, config.mix, *images_BSS3.shape[1:3])
            images_BSS3, targets_BC = mix(weights, images_BSS3, targets_BC)
        return batch | {'image': images_BSS3, 'target': targets_BC}

    def loss(self, params, batch, keys_B, *, progress, train):
        config, model, valid_B = self.config, nnx.merge(self.graphdef, params), batch['valid']
        if train:
            logits_BC, targets_BC = model(batch['image'], keys_B=keys_B), batch['target']
        else:
            pixels = normalize(to_float(batch['image']), config.data.mean, config.data.std)
            logits_BC, targets_BC = model(pixels), self.objective.targets(batch['label'])
        loss = jnp.sum(self.objective.losses(logits_BC, targets_BC) * valid_B)
        sums = {'loss': loss, 'weight': jnp.sum(valid_B)}
        if train:
            return loss, sums | self.objective.sums(logits_BC, targets_BC, valid_B)
        more, told = self.objective.evaluated(logits_BC, batch['label'], valid_B)
        return loss, sums | more | {'rows': {'label': batch['label'], 'valid': valid_B} | told}

    def summarize(self, sums):
        """`loss`, and what `objectives` says of each of its kinds."""
        return {'loss': sums['loss'] / sums['weight']} | self.objective.summarize(sums)

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
        } | self._described_problem()

    def _described_problem(self) -> dict:
        config = self.config
        if config.data.labels == 'class':
            return {}
        described = {'problem_type': PROBLEMS[config.data.labels]}
        if config.data.labels == 'numbers':
            described['targets'] = {'mean': config.target_mean, 'std': config.target_std}
        return described


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
    model = Classifier(
        config.model,
        config.grid,
        config.num_classes,
        pooling=config.pooling,
        head_scale=config.head_scale,
        dtype=config.compute_dtype,
        rngs=rngs,
    )
    model.encoder.frozen = config.frozen_blocks
    return model


def make(config: Config) -> Classify:
    return Classify(config, nnx.graphdef(nnx.eval_shape(lambda: _build(config, nnx.Rngs(0)))))
