"""Semantic segmentation (paper, section 3.2; official semantic_segmentation/): a class for each
pixel, by UPerNet on the encoder, or by a linear layer (with `trained_blocks=0` a probe).

The encoder of a checkpoint, its positions fitted to the crop's, feeds four blocks to a feature
pyramid. The host resizes, crops and flips a picture with its label map; the device changes its
colours. The loss is the mean over pixels (`avg_non_ignore` says which) of the cross-entropy of the
logits, resized to the crop, and of 0.4 times that of an auxiliary head. Whole pictures are labelled
by windows (`train.segmentation`). Shape legend: B images, S side of the crop in pixels, h w of the
logits (a quarter of it), C classes.
"""

import dataclasses
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from beit_jax.data.config import IGNORED, SegmentDataConfig
from beit_jax.errors import check, one_of
from beit_jax.images.color import normalize, to_float
from beit_jax.images.distortion import distort_views
from beit_jax.models.architecture import head_config, segments
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.resize import resize
from beit_jax.models.upernet import Segmenter, UperNetConfig
from beit_jax.settings.intervals import Interval
from beit_jax.tasks import FineTune, FineTuneRunConfig
from beit_jax.tasks.classify import SAME_CLASSES, adapt_encoder, pixel_differences
from beit_jax.weights.class_names import first_difference

MODES = ('slide', 'whole')


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a whole picture is labelled. It is resized to just cover `data.image_size` (that is then
    its shorter side), its longer side to four times that at most; with several scales to cover the
    larger of that and of `scale` times that, however long it comes (the official SETR_Resize)."""

    # slide: windows of the crop's size, their logits averaged | whole: the picture squeezed into
    # one window
    mode: str = 'slide'
    # pixels from window to window; 0: two thirds of a window, as the official 341 of 512 and 426 of
    # 640
    stride: int = 0
    # of the sides; with several, or with flip, probabilities are averaged (as mmsegmentation)
    scales: tuple[Annotated[float, Interval(0.1, 10)], ...] = (1.0,)
    flip: bool = False  # also turned round
    windows: Annotated[int, Interval(1, 256)] = 16  # in one program

    def __post_init__(self):
        one_of('config.inference.mode', self.mode, MODES)
        check(
            len(self.scales) > 0,
            'config.inference.scales is empty: (1.0,) is the picture as it is.',
        )
        check(
            self.mode == 'slide' or self.scales == (1.0,),
            'config.inference.mode=whole has one window of one size: leave scales at 1.',
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FineTuneRunConfig):
    task: str = 'segment'
    data: SegmentDataConfig = SegmentDataConfig()
    model: EncoderConfig = EncoderConfig(positions='layer_bias')
    head: UperNetConfig = UperNetConfig()
    auxiliary_weight: float = 0.4  # of the auxiliary head's loss
    # whether the loss is the mean over the pixels that have a class; false: over all, those of none
    # with 0, as mmsegmentation 0.11
    avg_non_ignore: bool = True
    new_head: bool = False  # start with fresh heads where `init` has them for other classes
    # the classes of `init` are this run's, in this order, under other names
    same_classes: bool = False
    distort: bool = True  # change the colours of training crops
    inference: InferenceConfig = InferenceConfig()
    pictures: int = 8  # held-out pictures that are drawn into WORKDIR/images with their labels

    def __post_init__(self):
        super().__post_init__()
        check(
            self.inference.stride <= min(self.data.shape),
            f'config.inference.stride {self.inference.stride} is larger than the windows of '
            f'{self.data.image_size}: pixels between them would have no class.',
        )
        check(
            self.num_classes <= IGNORED,
            f'config.num_classes is {self.num_classes}: label maps hold {IGNORED} classes at most.',
        )
        check(
            not self.distort or self.data.pixels.num_channels == 3,
            'config.distort changes hue and saturation, which pictures of '
            f'{self.data.pixels.num_channels} channels have not: set it to false.',
        )


@dataclasses.dataclass(frozen=True)
class Segment(FineTune):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    graphdef: nnx.GraphDef

    @property
    def views(self):
        data = self.config.data
        return data.view('image'), data.view('label_map', 0, 'nearest')

    def build(self, rngs):
        return _build(self.config, rngs)

    def adapt(self, params, description, classes, source):
        """The encoder with its positions fitted, and the heads where they are for the same classes;
        those of other tasks are left out."""
        architecture, config = description['architecture'], self.config
        encoder, notes = adapt_encoder(params, architecture, config, source)
        differences = pixel_differences(architecture, config.data, source)
        notes += [f'warning: {difference}' for difference in differences]
        if not segments(architecture):
            return {'encoder': encoder}, ('head',), notes
        width, named = architecture['num_classes'], description.get('classes') or ()
        as_many = width == config.num_classes
        same = config.same_classes or not named or first_difference(named, classes) is None
        if as_many and same:
            theirs, ours = head_config(architecture), config.head.fitted(config.model)
            for name in ('kind', 'taps', 'pool_scales', 'auxiliary_tap', 'norm_eps'):
                has, wants = getattr(theirs, name), getattr(ours, name)
                check(
                    has == wants,
                    f'{source} has {name} {has}, config.head.{name} is {wants}: set it so.',
                )
            return {'encoder': encoder, 'head': params['head']}, (), notes
        check(
            config.new_head,
            f'the heads of {source} are for {width} classes ({", ".join(map(str, named[:3]))}, '
            f'...); this run has {config.num_classes} ({", ".join(classes[:3])}, ...): give the '
            f'classes that it was trained on{SAME_CLASSES * as_many}, or set '
            'config.new_head=true to start with fresh heads.',
        )
        notes.append(
            f'the heads of {source}, for {width} classes, are replaced by fresh ones for '
            f'{config.num_classes}'
        )
        return {'encoder': encoder}, ('head',), notes

    def augment(self, batch, key, keys_B):
        """`image` float32 [B, height, width, C], normalised, in place of the bytes."""
        config, images_BSS3 = self.config, to_float(batch['image'])
        if config.distort:
            images_BSS3 = distort_views(config.seed, batch['view'], images_BSS3)
        return batch | {'image': normalize(images_BSS3, config.data.mean, config.data.std)}

    def loss(self, params, batch, keys_B, *, progress, train):
        config, model = self.config, nnx.merge(self.graphdef, params)
        images_BSS3 = batch['image']
        if not train:
            images_BSS3 = normalize(to_float(images_BSS3), config.data.mean, config.data.std)
        logits_BhwC, auxiliary_BhwC, statistics = model(
            images_BSS3, keys_B=keys_B if train else None, train=train
        )
        labels_BSS = batch['label_map'].astype(jnp.int32)
        weights_BSS = (labels_BSS != IGNORED) * batch['valid'][:, None, None]
        loss, correct = _pixel_loss(logits_BhwC, labels_BSS, weights_BSS)
        auxiliary_loss = 0.0
        if auxiliary_BhwC is not None:
            auxiliary_loss, _ = _pixel_loss(auxiliary_BhwC, labels_BSS, weights_BSS)
        total = loss + config.auxiliary_weight * auxiliary_loss
        labelled = jnp.sum(weights_BSS)
        pixels = jnp.sum(batch['valid']) * labels_BSS[0].size
        sums = {
            'loss': total,
            'weight': labelled if config.avg_non_ignore else pixels,
            'labelled': labelled,
            'auxiliary_loss': auxiliary_loss,
            'correct': correct,
        }
        if train:
            sums['statistics'] = statistics, 1.0
        return total, sums

    def follow(self, params, sums):
        """The running statistics of the norms: their mean where a batch has parts."""
        statistics, count = sums['statistics']
        return jax.tree.map(lambda total: total / count, statistics)

    def summarize(self, sums):
        """`pixel_accuracy` is that of the pixels of the crops that have a class; `loss` has the
        share of `auxiliary_loss` in it."""
        return {
            'loss': sums['loss'] / sums['weight'],
            'auxiliary_loss': sums['auxiliary_loss'] / sums['weight'],
            'pixel_accuracy': sums['correct'] / sums['labelled'],
        }

    def label_windows(self, params, images_BSS3):
        model, data = nnx.merge(self.graphdef, params), self.config.data
        logits_BhwC, *_ = model(normalize(to_float(images_BSS3), data.mean, data.std), train=False)
        return logits_BhwC

    def describe(self):
        config, data = self.config, self.config.data
        return {
            'architecture': 'beit_segmenter',
            **dataclasses.asdict(config.model),
            'grid': config.grid,
            'num_classes': config.num_classes,
            'head': dataclasses.asdict(config.head),
            'crop': 1.0,
            **data.describe(),
            'reduce_zero_label': data.reduce_zero_label,
            'inference': dataclasses.asdict(config.inference),
        }


# Logits of the crop's size, larger than all that the model keeps, are made anew going backwards.
@jax.checkpoint
def _pixel_loss(logits_BhwC, labels_BSS, weights_BSS):
    """(weighted sum of the cross-entropies, weighted number of pixels whose best class is right) of
    logits resized to the labels' size."""
    logits_BSSC = resize(logits_BhwC, labels_BSS.shape[1:])
    losses_BSS = optax.softmax_cross_entropy_with_integer_labels(
        logits_BSSC, jnp.where(labels_BSS == IGNORED, 0, labels_BSS)
    )
    return jnp.sum(losses_BSS * weights_BSS), jnp.sum(
        (jnp.argmax(logits_BSSC, axis=-1) == labels_BSS) * weights_BSS
    )


def _build(config: Config, rngs: nnx.Rngs) -> Segmenter:
    model = Segmenter(
        config.model,
        config.grid,
        config.num_classes,
        head=config.head,
        dtype=config.compute_dtype,
        rngs=rngs,
    )
    model.encoder.frozen = config.frozen_blocks
    return model


def make(config: Config) -> Segment:
    return Segment(config, nnx.graphdef(nnx.eval_shape(lambda: _build(config, nnx.Rngs(0)))))
