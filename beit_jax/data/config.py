"""The settings of the input, the same for every task."""

import dataclasses
import os
from typing import ClassVar

from beit_jax.errors import check, one_of

SOURCES = ('shapes', 'folder', 'tfds')
IMAGE_OPS = ('simd', 'tensorflow')
# of `shapes`, as data/sources/shapes.py explains them
LEVELS = ('easy', 'rotated', 'textured', 'cluttered', 'occluded', 'medium', 'hard')
IGNORED = 255  # in a label map: a pixel of no class


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are cropped. Sizes are in pixels, shares and scales in [0, 1]."""

    name: str = 'folder'  # shapes | folder | tfds
    # folder: the images; tfds: the version directory that holds dataset_info.json; local, or
    # gs://..., s3://...
    path: str = ''
    evaluate_path: str = ''  # folder: held-out images; '' holds out a share of `path`
    holdout: float = 0.0  # the share of `path` that is held out where there is no evaluate_path
    split: str = 'train'  # tfds
    # tfds: held-out split; '' holds out a share of `split`. shapes: which other pictures; '' is
    # `evaluate`
    evaluate_split: str = ''
    labels_per_class: int = 0  # train on so many examples of each class only; 0: on all
    subset_seed: int = 0  # which examples these are
    level: str = 'easy'  # shapes: how hard the pictures are; see data/sources/shapes.py
    num_examples: int = 20_000  # shapes
    num_evaluate_examples: int = 2_000  # shapes
    image_size: int = 224
    # area of the random crop over the area of the image
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of the random crop
    flip: bool = True
    # epochs after which each image's crops, flips and colours come again; 0: never
    repeat_views: int = 0
    # side of the central square that is evaluated over the shorter side of the image
    evaluate_crop: float = 224 / 256
    # times that an example comes in an epoch, augmented each time another way (DeiT: 3)
    repeated_augmentation: int = 1
    # brightness, contrast, saturation; on the device
    color_jitter: tuple[float, float, float] = (0.4, 0.4, 0.4)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    # a folder, yours, that keeps lists of files and records, so that the next start need not make
    # them; '': none
    index: str = ''
    chunk: int = 0  # examples that lie side by side and are read in one go; 0: each on its own
    window: int = 16  # chunks whose examples are shuffled together
    # parts of an epoch that are read side by side, each for its own rows of a batch; the number of
    # hosts, or a multiple
    lanes: int = 1
    # what decodes and resizes: simd | tensorflow (slower, takes no other library, rounds otherwise)
    image_ops: str = 'simd'
    workers: int = 0  # parallel decodes; 0: one per core
    prefetch: int = 2  # batches read ahead
    max_bad_share: float = 0.01  # of unreadable examples, above which a run stops
    # whether an example's label is a map, the class of each pixel
    label_maps: ClassVar[bool] = False

    @property
    def num_workers(self) -> int:
        """Parallel decodes: `workers`, else one for each core of this process."""
        return self.workers or len(os.sched_getaffinity(0))

    def __post_init__(self):
        one_of('config.data.name', self.name, SOURCES)
        one_of('config.data.level', self.level, LEVELS)
        one_of('config.data.image_ops', self.image_ops, IMAGE_OPS)
        check(
            self.name != 'tfds' or not self.evaluate_path,
            'config.data.evaluate_path is for folders: with data.name=tfds the held-out '
            'images are config.data.evaluate_split, or a share config.data.holdout.',
        )
        check(
            '://' not in self.index,
            f'config.data.index={self.index!r} is not local: lists are mapped into memory. Give a '
            'local folder.',
        )
        check(
            self.chunk >= 0, f'config.data.chunk is {self.chunk}: use a number of examples, or 0.'
        )
        check(
            self.window > 0 and self.lanes > 0,
            f'config.data.window is {self.window} and lanes {self.lanes}: use at least 1.',
        )
        check(
            self.chunk > 0 or self.lanes == 1,
            f'config.data.lanes={self.lanes} is for chunks: set config.data.chunk too, or leave '
            'it 1.',
        )
        check(
            not self.chunk or self.name != 'shapes',
            'config.data.chunk is for stored images, shapes are drawn: leave it 0.',
        )
        check(
            not self.chunk or (self.repeated_augmentation == 1 and not self.repeat_views),
            'config.data.chunk excludes config.data.repeated_augmentation, repeat_views and '
            'tokenizer.cache_views: leave it 0, or those as they are.',
        )
        check(self.image_size > 0, f'config.data.image_size is {self.image_size}: use at least 1.')
        for name in ('crop_scale', 'crop_ratio'):
            low, high = getattr(self, name)
            check(0 < low <= high, f'config.data.{name} is ({low}, {high}): use 0 < low <= high.')
        check(
            self.crop_scale[1] <= 1,
            f'config.data.crop_scale ends at {self.crop_scale[1]}: a crop has at most '
            'the whole area, 1.',
        )
        check(
            0 <= self.holdout < 1,
            f'config.data.holdout is {self.holdout}: use a share from 0 up to but not including 1.',
        )
        check(min(self.std) > 0, f'config.data.std is {self.std}: use positive numbers.')
        check(
            0 < self.evaluate_crop <= 1,
            f'config.data.evaluate_crop is {self.evaluate_crop}: use a share above 0, at most 1.',
        )
        check(
            self.repeat_views >= 0,
            f'config.data.repeat_views is {self.repeat_views}: use a number of epochs, or 0.',
        )
        check(
            self.labels_per_class >= 0,
            f'config.data.labels_per_class is {self.labels_per_class}: use a number of examples, '
            'or 0 for all.',
        )
        check(
            self.repeated_augmentation > 0,
            f'config.data.repeated_augmentation is {self.repeated_augmentation}: use at least 1.',
        )
        check(
            self.repeated_augmentation == 1 or not self.repeat_views,
            'config.data.repeated_augmentation and config.data.repeat_views exclude '
            'each other: leave one of them as it is.',
        )
        check(
            self.num_examples > 0 and self.num_evaluate_examples >= 0,
            'config.data.num_examples must be positive.',
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentDataConfig(DataConfig):
    """Images with label maps, for semantic segmentation.

    `path` is, for folder, one that holds images/training, annotations/training, images/validation
    and annotations/validation (ADE20K as published), or images and annotations alone; for tfds, a
    set with an image and an annotation. Training crops `image_size` squares out of images resized
    to `segment_scale` times what fits into 4 image_size x image_size; crop_scale, crop_ratio and
    color_jitter have no part.
    """

    label_maps: ClassVar[bool] = True
    reduce_zero_label: bool = False  # annotations count from 1: 0 is ignored, k is class k - 1
    segment_scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self):
        super().__post_init__()
        low, high = self.segment_scale
        check(
            0 < low <= high, f'config.data.segment_scale is ({low}, {high}): use 0 < low <= high.'
        )
        check(
            not self.labels_per_class,
            'config.data.labels_per_class is for images of one class each: leave it 0.',
        )


@dataclasses.dataclass(frozen=True)
class View:
    """One square picture of a crop: the key of the batch it becomes, its side in pixels, the
    resampling, and RandAugment (training only).

    A view by `nearest` is of the example's label map, and takes a `SegmentDataConfig`; so does
    every view beside it, all of one size then.
    """

    name: str
    size: int
    method: str = 'bicubic'  # bicubic | lanczos3 | nearest
    rand_augment: str = ''  # see `rand_augment.parse_policy`

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size) if self.method == 'nearest' else (self.size, self.size, 3)
