"""The settings of the input, the same for every task."""

import dataclasses
import os
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from beit_jax.errors import check, one_of
from beit_jax.settings.intervals import Count, Interval, Seed, Share, ShareBelow1, Sides

SOURCES = ('shapes', 'folder', 'tfds', 'webdataset', 'parquet', 'class_tars')
LABEL_MAP_SOURCES = ('shapes', 'folder', 'tfds')  # those that may have label maps
IMAGE_OPS = ('simd', 'tensorflow')
LABELS = ('class', 'classes', 'numbers')
# of `shapes`, as data/sources/shapes.py explains them
LEVELS = ('easy', 'rotated', 'textured', 'cluttered', 'occluded', 'medium', 'hard')
MAX_PIXELS = 178_956_970  # above which Pillow takes a picture for an attack
# of the files that are pictures, in lower case
ENDINGS = (
    '.jpg', '.jpeg', '.jfif', '.jpe', '.png', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.ppm',
    '.pgm', '.pbm', '.pnm',
)  # fmt: skip
IGNORED = 255  # in a label map: a pixel of no class

Area = Annotated[float, Interval(0.001, 1)]
Factor = Annotated[float, Interval(0.01, 100)]  # how much larger or longer
Jitter = Annotated[float, Interval(0, 100)]
Deviation = Annotated[float, Interval(0.001, 1)]
Channels = Annotated[int, Interval(1, 1024)]
Band = Annotated[int, Interval(0, 1023)]


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """What the pixels of stored pictures are, and which of their channels are read. By default RGB
    of 8 bits, which every other picture is turned into; in any other format pictures are arrays,
    and none is turned into another."""

    channels: int = 3  # of a picture as it is stored
    bits: int = 8  # of a value: 8 | 16
    bands: tuple[int, ...] = ()  # the channels that are read, from 0, in this order; (): all

    @property
    def is_rgb(self) -> bool:
        return self == PixelFormat()

    @property
    def num_channels(self) -> int:
        """Channels of a picture as models see it."""
        return len(self.bands) or self.channels

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f'uint{self.bits}')

    @property
    def top(self) -> int:
        """The largest value, which stands for 1."""
        return 2**self.bits - 1


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture; of a square one number says it."""
    return (size, size) if isinstance(size, int) else tuple(size)


def one_size(height: int, width: int) -> int | tuple[int, int]:
    """The inverse of `sides`."""
    return height if height == width else (height, width)


class Reading(NamedTuple):
    """How a file becomes pixels: the settings of `DataConfig` that are called so."""

    max_pixels: int = MAX_PIXELS
    endings: tuple[str, ...] = ENDINGS
    exif: bool = False
    pixels: PixelFormat = PixelFormat()

    @property
    def listed(self) -> tuple[str, ...]:
        """The endings of the files that are pictures."""
        return self.endings if self.pixels.is_rgb else (*self.endings, '.npy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are cropped. Sizes are in pixels, shares and scales in [0, 1]."""

    name: str = 'folder'  # shapes | folder | tfds | webdataset | parquet | class_tars
    # folder: the images; tfds: the version directory that holds dataset_info.json; webdataset: the
    # folder of the .tar files, or FOLDER/name-{0000..1023}.tar; parquet: the folder of the .parquet
    # files, or of a saved Dataset; class_tars: the tar of tars, or the folder of them; local, or
    # gs://..., s3://...
    path: str = ''
    # folder, webdataset, parquet, class_tars: held-out images; '' holds out a share of `path`
    evaluate_path: str = ''
    # the share of `path` that is held out where there is no evaluate_path
    holdout: ShareBelow1 = 0.0
    split: str = 'train'  # tfds, webdataset, parquet
    # tfds, webdataset, parquet: held-out split; '' holds out a share of `split`. shapes: which
    # other pictures; '' is `evaluate`
    evaluate_split: str = ''
    # webdataset: the member of a sample that holds its label, or json.NAME, a field of its json;
    # '' is cls, or what _info.json says. parquet: a column, or several, as a,b; '' is label or the
    # like. folder: a column of its metadata.csv or .jsonl, in place of folders
    label_field: str = ''
    # folder, parquet: class, of each example one | classes, any number | numbers, for regression
    labels: str = 'class'
    image_field: str = ''  # parquet: the column of images; '' is image or the like
    labels_per_class: int = 0  # train on so many examples of each class only; 0: on all
    subset_seed: Seed = 0  # which examples these are
    level: str = 'easy'  # shapes: how hard the pictures are; see data/sources/shapes.py
    # shapes; the order of an epoch is held in memory
    num_examples: Annotated[int, Interval(1, 100_000_000)] = 20_000
    num_evaluate_examples: Annotated[int, Interval(0, 100_000_000)] = 2_000  # shapes
    image_size: Sides = 224  # a square, or (height, width)
    channels: Channels = 3  # of the pictures as they are stored
    bits: int = 8  # of a value of them: 8 | 16
    # the channels that are read, from 0, in this order; (): all
    bands: tuple[Band, ...] = ()
    # area of the random crop over the area of the image
    crop_scale: tuple[Area, Area] = (0.08, 1.0)
    crop_ratio: tuple[Factor, Factor] = (3 / 4, 4 / 3)  # width over height of the random crop
    flip: bool = True  # half of the pictures, left to right, in training
    # epochs after which each image's crops, flips and colours come again; 0: never
    repeat_views: Annotated[int, Interval(0, 10_000)] = 0
    # side of the central square that is evaluated over the shorter side of the image; of a
    # rectangle, what is evaluated over the largest of its shape that the image holds
    evaluate_crop: Annotated[float, Interval(0.01, 1)] = 224 / 256
    # times that an example comes in an epoch, augmented each time another way (DeiT: 3)
    repeated_augmentation: Annotated[int, Interval(1, 1000)] = 1
    # brightness, contrast, saturation; on the device
    color_jitter: tuple[Jitter, Jitter, Jitter] = (0.4, 0.4, 0.4)
    # of each channel that is read, in shares of the largest value; one number: of all of them
    mean: tuple[Share, ...] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, ...] = (0.229, 0.224, 0.225)  # by which they are then divided
    # a folder, yours, that keeps lists of files and records, so that the next start need not make
    # them; '': none
    index: str = ''
    chunk: int = 0  # examples that lie side by side and are read in one go; 0: each on its own
    window: Count = 16  # chunks whose examples are shuffled together
    # parts of an epoch that are read side by side, each for its own rows of a batch; the number of
    # hosts, or a multiple
    lanes: Count = 1
    # what decodes and resizes: simd | tensorflow (slower, takes TensorFlow alone, rounds otherwise)
    image_ops: str = 'simd'
    workers: Annotated[int, Interval(0, 1024)] = 0  # parallel decodes; 0: one per core
    prefetch: Annotated[int, Interval(0, 1024)] = 2  # batches read ahead
    max_bad_share: Share = 0.01  # of unreadable examples, above which a run stops
    # of a picture or an annotation, by its header: more are a bad record, and are not decoded
    max_pixels: Annotated[int, Interval(1, 2**40)] = MAX_PIXELS
    # of the files of a folder (webdataset: of the members) that are pictures; any other file that
    # Pillow reads may be added, as .jp2
    endings: tuple[str, ...] = ENDINGS
    # whether a picture is turned as its EXIF orientation says (TIFF: it always is)
    exif: bool = False
    # whether an example's label is a map, the class of each pixel
    label_maps: ClassVar[bool] = False

    @property
    def num_workers(self) -> int:
        """Parallel decodes: `workers`, else one for each core of this process."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def reading(self) -> Reading:
        """What decoders need of it."""
        return Reading(self.max_pixels, self.endings, self.exif, self.pixels)

    @property
    def pixels(self) -> PixelFormat:
        return PixelFormat(self.channels, self.bits, self.bands)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what models see, in pixels."""
        return sides(self.image_size)

    def view(self, name: str, size: int | tuple[int, int] = 0, *arguments) -> 'View':
        """A view of these pictures, of `image_size` where `size` is 0."""
        return View(name, size or self.image_size, *arguments, pixels=self.pixels)

    def normalized(self) -> 'DataConfig':
        """The same with one mean and one deviation a channel.

        Raises:
          RequestError: there are more or fewer.
        """
        count, changed = self.pixels.num_channels, {}
        for name in ('mean', 'std'):
            values = getattr(self, name)
            check(
                len(values) in (1, count),
                f'config.data.{name} has {len(values)} numbers, but {count} channels are read: '
                'give one for each, or one for all.',
            )
            changed[name] = values if len(values) == count else values * count
        return dataclasses.replace(self, **changed)

    def check_jitter(self) -> None:
        """Raises RequestError where colours would be changed that there are not."""
        brightness, contrast, saturation = self.color_jitter
        check(
            not saturation or self.pixels.num_channels == 3,
            f'config.data.color_jitter changes the saturation ({saturation:g}), which pictures of '
            f'{self.pixels.num_channels} channels have not: set it to '
            f'({brightness:g},{contrast:g},0.0), or to (0.0,0.0,0.0) for none.',
        )

    def describe(self) -> dict:
        """What a checkpoint says of the pictures of its model. JSON."""
        reading = self.reading._asdict()
        del reading['pixels']
        said = {'image_size': self.image_size, 'mean': self.mean, 'std': self.std}
        said['reading'] = reading
        return said if self.pixels.is_rgb else said | {'pixels': dataclasses.asdict(self.pixels)}

    def __post_init__(self):
        allowed = {'name': SOURCES, 'level': LEVELS, 'image_ops': IMAGE_OPS, 'labels': LABELS}
        for name, values in allowed.items():
            one_of(f'config.data.{name}', getattr(self, name), values)
        check(
            self.labels == 'class'
            or (self.name in ('folder', 'parquet') and not self.labels_per_class),
            f'config.data.labels={self.labels} takes name=folder or parquet, labels_per_class=0.',
        )
        check(
            not self.exif or self.pixels.is_rgb,
            'config.data.exif is for RGB of 8 bits: leave it false.',
        )
        object.__setattr__(self, 'image_size', one_size(*self.shape))
        self._check_pixels()
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
        for name in ('crop_scale', 'crop_ratio'):
            check_order(name, getattr(self, name))
        check(
            self.repeated_augmentation == 1 or not self.repeat_views,
            'config.data.repeated_augmentation and config.data.repeat_views exclude '
            'each other: leave one of them as it is.',
        )

    def _check_pixels(self):
        check(self.bits in (8, 16), f'config.data.bits is {self.bits}: it takes 8 or 16.')
        beyond = [band for band in self.bands if band >= self.channels]
        check(
            not beyond,
            f'config.data.bands names channel {beyond and beyond[0]}, but config.data.channels='
            f'{self.channels} has 0 to {self.channels - 1}: lower it, or raise the channels.',
        )
        check(
            self.pixels.is_rgb or self.image_ops == 'simd',
            'config.data.image_ops=tensorflow reads RGB of 8 bits alone: set it to simd.',
        )
        check(
            self.name != 'shapes' or (self.channels, self.bits) == (3, 8),
            'config.data.name=shapes draws RGB of 8 bits: leave config.data.channels 3 and bits 8.',
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentDataConfig(DataConfig):
    """Images with label maps, for semantic segmentation.

    `path` is, for folder, one that holds images/training, annotations/training, images/validation
    and annotations/validation (ADE20K as published), or images and annotations alone; for tfds, a
    set with an image and an annotation. Training crops pictures of `image_size` out of images
    resized to `segment_scale` times what just covers that, and at most four times as long as it;
    crop_scale, crop_ratio and color_jitter have no part.
    """

    label_maps: ClassVar[bool] = True
    reduce_zero_label: bool = False  # annotations count from 1: 0 is ignored, k is class k - 1
    # of the resize before the crop, times what just covers image_size
    segment_scale: tuple[Factor, Factor] = (0.5, 2.0)

    def __post_init__(self):
        super().__post_init__()
        check_order('segment_scale', self.segment_scale)
        check(
            self.name in LABEL_MAP_SOURCES,
            f'config.data.name={self.name!r} has no label maps: segmentation takes '
            f'{", ".join(LABEL_MAP_SOURCES)}.',
        )
        check(
            not self.labels_per_class and self.labels == 'class',
            'config.data.labels_per_class and labels are of whole images: leave them 0 and class.',
        )
        check(
            not self.exif,
            'config.data.exif would turn images and not their annotations: leave it false.',
        )


def check_order(name: str, ends: tuple[float, float]) -> None:
    """Raises RequestError where a range ends below its beginning."""
    check(ends[0] <= ends[1], f'config.data.{name} is {ends}: give the smaller number first.')


@dataclasses.dataclass(frozen=True)
class View:
    """One picture of a crop: the key of the batch it becomes, its side in pixels (or height and
    width), the resampling, RandAugment (training only), and what its pixels are.

    A view by `nearest` is of the example's label map, and takes a `SegmentDataConfig`; so does
    every view beside it, all of one size then.
    """

    name: str
    size: int | tuple[int, int]
    method: str = 'bicubic'  # bicubic | lanczos3 | nearest
    rand_augment: str = ''  # see `rand_augment.parse_policy`
    pixels: PixelFormat = PixelFormat()

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return sides(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sides if self.method == 'nearest' else (*self.sides, self.pixels.num_channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8) if self.method == 'nearest' else self.pixels.dtype
