"""Batches for the trainer: read, crop, flip and resize in parallel, each picture a pure function of
(seed, example, number of the view).

A bad record (not an image, truncated, too small, unreadable) never shifts the others: another
example takes its place, the same one on every run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import math

import numpy as np

from beit_jax.data import parallel
from beit_jax.data.config import IGNORED, DataConfig, SegmentDataConfig, View
from beit_jax.data.parallel import Batch
from beit_jax.data.pictures import label_maps
from beit_jax.data.pictures.boxes import (
    DRAWS,
    FormatError,
    center_box,
    crop,
    flipped,
    pixel_box,
    random_box,
    whole_box,
)
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.pictures.rand_augment import fill_color, parse_policy, rand_augment
from beit_jax.data.sampler import Sampler, random_bits
from beit_jax.data.segmentation import show_window, whole_example
from beit_jax.data.sources.source import Source, check_label, label_shape
from beit_jax.errors import RequestError, StorageError, of_storage

SUBSTITUTES = 8  # examples that may take the place of a bad one; they are read only when it is bad
CHECKED = 32  # examples that check_source reads
AWAY = 'Make the data readable again: the same command goes on.'
_UNREAD = (FileNotFoundError, PermissionError)  # of fsspec, which have no errno there
_ENDLESS = 2**62  # steps


def train_batches(
    source: Source,
    sampler: Sampler,
    views: Sequence[View],
    config: DataConfig,
    rows: np.ndarray,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on, randomly cropped and flipped.

    Args:
      rows: int [R], those of each global batch that are made.

    Yields:
      each view's name: [R, *view.shape] of view.dtype, one and the same crop; `grey` float32 [R],
        the mean grey of the whole picture in [0, 1], which the contrast of `config.color_jitter`
        needs, else 0; `label` int32 [R], 0 where labels are maps, or float32 [R, C] where they are
        no single class (`label_shape`); `index` int64 [R], the example that the sampler asked for;
        `view` uint32 [R], the number that seeds what is drawn for the picture (modulo 2 ** 32);
        `substituted` bool [R], true where that example was bad; `used` int64 [R], the one that is
        there instead; `valid` float32 [R], ones.

    With label maps (`SegmentDataConfig`) the crop is `label_maps.random_window`, flipped before it
    is padded: with the mean of the pixels, which is 0 once they are normalised, and with 255 in the
    view by `nearest`, uint8 [R, height, width], which shows the classes of that very crop.

    Raises:
      StorageError: an example and all that could take its place cannot be read.
      RequestError: or are damaged; a label or a pixel of one has a class that there is not; an
        annotation has another size than its image.
    """
    images = image_ops(config)

    def examples(step):
        positions = sampler.positions(step, rows)
        return sampler.views(positions), sampler.examples(positions)

    def candidates(number, index):
        """`index`, then others drawn from (seed, number)."""
        yield index
        for bits in random_bits(SUBSTITUTES, sampler.seed, number):
            yield int(bits % len(source))

    def make(number, used, example):
        flip_draw, *draws = _uniform(sampler.seed, number)
        flip = config.flip and flip_draw < 0.5
        if config.label_maps:
            size, scale = views[0].sides, config.segment_scale
            window_of = functools.partial(label_maps.random_window, draws, size=size, scale=scale)
            return show_window(source, used, example, views, config, window_of, flip), 0.0, 0
        scale, ratio, grey = config.crop_scale, config.crop_ratio, 0.0
        box_of = functools.partial(random_box, draws, scale=scale, ratio=ratio)
        if any(config.color_jitter):
            whole = images.decode_crop(example.image, whole_box, config.reading)
            cropped, grey = crop(whole, box_of), _mean_grey(whole)
        else:
            cropped = images.decode_crop(example.image, box_of, config.reading)
        pictures = images.resize(cropped, views)
        if flip:  # after resizing: there is less to turn
            pictures = [flipped(picture) for picture in pictures]
        return [augment(*each, number) for each in zip(pictures, views)], grey, example.label

    def augment(picture, view, number):
        if not view.rand_augment:
            return picture
        policy, fill = parse_policy(view.rand_augment), fill_color(config.mean)
        return rand_augment(picture, policy, sampler.seed, number, fill)

    load = functools.partial(_load, source, candidates, make, views)
    steps = range(start_step, _ENDLESS)
    shape = label_shape(source)
    for batch in parallel.batches(steps, examples, load, views, len(rows), config, shape):
        used = _checked_used(batch, source)
        if (used < 0).any():
            index = batch['index'][used < 0][0]
            why = flaw(source, index, config)
            message = (
                f'{source.name(index)}: {words(why)}. {SUBSTITUTES} others, drawn to take its '
                'place, are bad too.'
            )
            if not _is_damage(why):
                raise StorageError(f'{message} {AWAY}')
            raise RequestError(f'{message} Remove or repair the bad files in config.data.path.')
        substituted = used != batch['index']
        yield batch | {'substituted': substituted, 'valid': np.ones(len(rows), np.float32)}


def evaluate_batches(
    source: Source,
    batch_size: int,
    views: Sequence[View],
    config: DataConfig,
    rows: np.ndarray,
    share: float = 224 / 256,
) -> Iterator[Batch]:
    """One pass over `source` in order, in batches as `train_batches` makes them, of the central
    square of `share` of the shorter side (`center_box` of the first view; with label maps in whole
    pixels).

    The last batch is filled up with example 0. `valid` is 0 there, and for a bad example, whose
    pixels and label are 0 (label map: 255) and `substituted` true, `used` -1. Every host yields
    ceil(N / batch_size) batches. For the whole of each picture: `segmentation_examples`.
    """
    images = image_ops(config)
    box_of = functools.partial(center_box, size=views[0].sides, share=share)

    def examples(step):
        positions = step * batch_size + np.asarray(rows, np.int64)
        return positions, np.where(positions < len(source), positions, 0)

    def make(_, used, example):
        if config.label_maps:
            return show_window(source, used, example, views, config, window_of), 0.0, 0
        pixels = images.decode_crop(example.image, whole_box, config.reading)
        return images.resize(pixels, views, box=box_of(*pixels.shape[:2])), 0.0, example.label

    def window_of(label_map):
        box = pixel_box(box_of(*label_map.shape))
        return box, label_maps.resize(label_map, box, views[0].shape[:2])

    load = functools.partial(_load, source, lambda _, index: [index], make, views)
    steps = range(math.ceil(len(source) / batch_size))
    shape = label_shape(source)
    batches = parallel.batches(steps, examples, load, views, len(rows), config, shape)
    for step, batch in zip(steps, batches, strict=True):
        positions, _ = examples(step)
        good = _checked_used(batch, source) >= 0
        valid = good & (positions < len(source))
        yield batch | {'substituted': ~good, 'valid': valid.astype(np.float32)}


def segmentation_examples(
    source: Source, config: SegmentDataConfig, indices: Iterable[int]
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray | None]]:
    """(index, image [H, W, C], label map uint8 [H, W]) of `indices`, in order, each of its
    own size; None and None where it is bad.

    Decoded ahead in threads. Of P hosts, the p-th takes `range(p, len(source), P)`.

    Raises:
      RequestError: see `whole_example`.
    """

    def load(index):
        try:
            return index, *whole_example(source, index, config)
        except OSError:
            return index, None, None

    return parallel.ahead(load, map(int, indices), config)


def check_source(source: Source, config: DataConfig) -> None:
    """Decodes up to 32 evenly spread examples in full.

    Raises:
      RequestError: the share of bad ones is above `config.max_bad_share`. One alone does not count,
        unless it is all there is, or of another format, for then the set is a mixed one.
      StorageError: because the storage fails.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, CHECKED).round().astype(int))
    flaws = [(index, flaw(source, index, config)) for index in indices]
    bad = [f'{source.name(index)} ({words(why)})' for index, why in flaws if why]
    mixed = any(isinstance(why, FormatError) for _, why in flaws)
    share = 0.0 if len(bad) == 1 < len(indices) and not mixed else len(bad) / len(indices)
    if share > config.max_bad_share:
        raise of_storage(
            next(why for _, why in flaws if why),
            f'{len(bad)} of {len(indices)} examples looked at cannot be used: '
            f'{", ".join(bad[:3])}{", ..." * (len(bad) > 3)}.\nRemove or repair them, or raise '
            f'config.data.max_bad_share ({config.max_bad_share:g}).',
        )


def are_away(source: Source, indices: Sequence[int], config: DataConfig) -> bool:
    """Whether most of some examples that could not be read, one at least, are not damaged: their
    storage is away or was, for they were there when the run began."""
    damaged = sum(_is_damage(flaw(source, index, config)) for index in indices)
    return 2 * damaged < len(indices)


def _uniform(seed: int, number: int) -> list[float]:
    """What is drawn for a view, uniform in [0, 1): one for the flip, DRAWS for the crop."""
    bits = random_bits(1 + DRAWS, seed, number, (0, 0, 0, 2))
    return ((bits >> np.uint64(11)) * 2.0**-53).tolist()


def _mean_grey(pixels: np.ndarray) -> float:
    """The mean in [0, 1] of what Pillow's convert('L') makes of uint8 [H, W, 3]; of other pictures
    the mean of all values."""
    height, width, channels = pixels.shape
    if channels != 3:
        return float(pixels.mean() / np.iinfo(pixels.dtype).max)
    if pixels.dtype != np.uint8:
        return float(pixels.mean((0, 1)) @ (0.299, 0.587, 0.114)) / np.iinfo(pixels.dtype).max
    # down the rows first: sums of three numbers at a time would be slow
    sums = pixels.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    return float(sums @ (0.299, 0.587, 0.114)) / (255 * height * width)


def _load(
    source: Source,
    candidates: Callable[[int, int], Iterable[int]],
    make: Callable[..., tuple[list, float, int]],
    views: Sequence[View],
    number: int,
    index: int,
) -> list:
    """The pictures, the grey and the label that `make(number, used, example)` gives for the first
    readable of `candidates(number, index)`, and its index `used`; where none is, black pictures, 0,
    0, -1."""
    for used in candidates(number, index):
        try:
            pictures, grey, label = make(number, used, source.read(used))
            return [*pictures, grey, label, used]
        except OSError:
            continue
    return [*(IGNORED if view.method == 'nearest' else 0 for view in views), 0.0, 0, -1]


def _checked_used(batch, source):
    """Which examples a batch uses, int64 [R], -1 for none; raises RequestError where one has a
    label that no class has."""
    used, labels = batch['used'], batch['label']
    if labels.ndim > 1:  # looked at when the source was opened
        return used
    unknown = (labels < 0) | (labels >= max(1, len(source.class_names)))
    for row in np.flatnonzero((used >= 0) & unknown):
        check_label(source, used[row], labels[row])
    return used


def flaw(source: Source, index: int, config: DataConfig) -> OSError | None:
    """Why an example cannot be used, or None; reads it again."""
    try:
        if config.label_maps:
            whole_example(source, int(index), config)
        else:
            # any other error of `read` is a bug and shows as itself
            image = source.read(int(index)).image
            image_ops(config).decode_crop(image, whole_box, config.reading)
    except OSError as error:
        return error
    return None


def _is_damage(why: OSError | None) -> bool:
    """Whether bytes were read that are no example; storage says of those that it does not give why
    (errno)."""
    return why is not None and why.errno is None and not isinstance(why, _UNREAD)


def words(why: OSError | None) -> str:
    """Of what `flaw` found."""
    return why.strerror or str(why) if why else 'it can be read again'
