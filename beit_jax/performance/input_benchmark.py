"""How fast a recipe's input is, stage by stage, against the PyTorch way of doing the same, written
with Pillow and NumPy as those do it."""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import os
import statistics
import time

import numpy as np
from PIL import Image

from beit_jax.data.config import DataConfig, View, one_size
from beit_jax.data.pictures.boxes import DRAWS, random_box, whole_box
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import check
from beit_jax.performance.pillow_benchmark import (
    FILTERS,
    Peer,
    augment,
    evaluation_peer,
    how_loaded,
    loaded,
    training_peer,
)
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import make_task

BATCH = 32  # images


def views_of(config: RunConfig) -> tuple[View, ...]:
    """What training reads of an image; for pre-training on tokens with the view of a tokenizer of 8
    pixels a token, as DALL-E's."""
    if config.task == 'pretrain' and config.target == 'tokens':
        size = one_size(*(8 * side for side in config.grid))
        return config.data.view('image'), config.data.view('token_image', size, 'lanczos3')
    return make_task(config).views


def check_peer(data: DataConfig) -> None:
    """Raises RequestError where the peers do not have such pictures."""
    check(
        data.pixels.is_rgb and isinstance(data.image_size, int),
        'the peers read squares of RGB of 8 bits: leave config.data.channels, bits and bands as '
        'they are, and give one number as config.data.image_size.',
    )


def benchmark_input(config: RunConfig, images: int, repeats: int, cores: int) -> dict:
    """Milliseconds an image and images per second of training's and evaluation's input and of their
    peers; all take turns in each repeat."""
    check(
        not config.data.label_maps,
        'label maps have no peer here: give a recipe of pre-training or of classification.',
    )
    check_peer(config.data)
    available = sorted(os.sched_getaffinity(0))
    check(cores <= len(available), f'--cores={cores}, but this process has {len(available)}.')
    os.sched_setaffinity(0, available[-cores:])  # before TensorFlow and JAX start their threads
    from beit_jax.data import pipeline

    data = config.data
    source, views, ops = open_source(data, 'train'), views_of(config), pipeline.image_ops(data)
    chosen, files = _usable_files(source, images, ops)
    rows, sampler = np.arange(BATCH), Sampler(len(chosen), BATCH, config.seed)

    def training():
        return pipeline.train_batches(chosen, sampler, views, data, rows)

    def evaluation():
        while True:
            yield from pipeline.evaluate_batches(
                chosen, BATCH, views[:1], data, rows, data.evaluate_crop
            )

    ways = {
        'training': training,
        'training, its peer': lambda: loaded(Peer(chosen, training_peer, config, views), BATCH),
        'evaluation': evaluation,
        'evaluation, its peer': lambda: loaded(Peer(chosen, evaluation_peer, config, views), BATCH),
    }
    stages = _Stages(ops, config, views, files, chosen)
    seconds = {name: [] for name in (*ways, *stages.names)}
    for _ in range(repeats):
        for name, batches in ways.items():
            # a peer has one core: another would double what it makes
            used = 1 if 'peer' in name else cores
            seconds[name].append(_seconds(batches(), len(chosen), data.prefetch) * used)
        for name, value in stages.measure():
            seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_stages = sum(median[name] for name in stages.names if name != 'transfer')
    milliseconds = {
        name: {'median': 1e3 * median[name], 'min': 1e3 * min(values), 'max': 1e3 * max(values)}
        for name, values in seconds.items()
    }
    milliseconds['batch and the rest'] = {'median': 1e3 * (median['training'] - of_stages)}
    return {
        'task': config.task,
        'image_ops': data.image_ops,
        'cores': cores,
        'images': len(chosen),
        'repeats': repeats,
        'peer': how_loaded(),
        'bytes_per_image': statistics.mean(map(len, files)),
        'views': [f'{view.size} {view.method} {view.rand_augment}'.strip() for view in views],
        'core_milliseconds': milliseconds,
        'images_per_second_and_core': {name: 1 / median[name] for name in ways},
        'ratio': {name: _ratio(seconds, name) for name in ('training', 'evaluation')},
        'grey_levels_from_pillow': stages.errors(),
    }


def _usable_files(source: Source, images: int, ops) -> tuple[Source, list[bytes]]:
    """(so many examples, evenly spread, without those that are no pictures; their files)."""
    chosen = Subset(source, spread(source, images))

    def usable(index):
        try:
            return ops.decode_crop(chosen.read(index).image, whole_box) is not None
        except OSError:
            return False

    found = Subset(chosen, list(filter(usable, range(len(chosen)))))
    check(
        len(found) >= BATCH,
        f'{len(found)} of the {images} images looked at can be used: it takes {BATCH}.',
    )
    files = [found.read(i).image for i in range(len(found))]
    check(
        all(isinstance(file, bytes) for file in files),
        'images that are drawn are not files: give a folder or records.',
    )
    return found, files


def _seconds(batches: Iterator, images: int, ahead: int) -> float:
    """Seconds an image; what was read ahead before the clock starts does not count, and nothing
    goes on after it."""
    for _ in range(ahead + 2):
        next(batches)
    count, began = math.ceil(images / BATCH), time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - began) / (count * BATCH)


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as long the peer takes as ours, turn by turn."""
    pairs = zip(seconds[name], seconds[f'{name}, its peer'])
    return statistics.median(theirs / ours for ours, theirs in pairs)


class _Stages:
    """The parts of our pipeline, each on its own, in one thread."""

    def __init__(
        self, ops, config: RunConfig, views: Sequence[View], files: list[bytes], source: Source
    ):
        rng, data = np.random.default_rng(0), config.data
        self._ops, self._views, self._data = ops, views, data
        self._files, self._source = files, source

        def box(draws, height, width):
            return random_box(draws, height, width, data.crop_scale, data.crop_ratio)

        draws = [rng.random(DRAWS).tolist() for _ in files]
        self._boxes = [functools.partial(box, of_file) for of_file in draws]
        self._crops = list(map(ops.decode_crop, files, self._boxes))
        self._augmented = [view for view in views if view.rand_augment]
        self.names = (
            'read',
            'decode the crop',
            *(f'resize to {view.size}' for view in views),
            *(f'RandAugment of {view.size}' for view in self._augmented),
            'transfer',
        )

    def measure(self) -> Iterator[tuple[str, float]]:
        """Seconds an image of each."""
        import jax

        yield 'read', _seconds_a_call(self._source.read, range(len(self._files)))
        decoded = _seconds_a_call(self._ops.decode_crop, self._files, self._boxes)
        yield 'decode the crop', decoded
        for view in self._views:
            resize = lambda crop, views=[view]: self._ops.resize(crop, views)
            yield f'resize to {view.size}', _seconds_a_call(resize, self._crops)
        for view in self._augmented:
            pictures = [self._ops.resize(crop, [view])[0] for crop in self._crops]
            change = functools.partial(augment, view=view, mean=self._data.mean)
            taken = _seconds_a_call(change, pictures, range(len(pictures)))
            yield f'RandAugment of {view.size}', taken
        batch = [np.zeros([BATCH, *view.shape], view.dtype) for view in self._views]
        transfer = lambda _: jax.block_until_ready(jax.device_put(batch))
        yield 'transfer', _seconds_a_call(transfer, range(len(self._files) // BATCH)) / BATCH

    def errors(self) -> dict[str, float]:
        """{view: mean difference from Pillow's resize of the same crop}, in grey levels of 255."""
        return {str(view.size): self._error(view) for view in self._views}

    def _error(self, view: View) -> float:
        means = []
        for crop in map(np.ascontiguousarray, self._crops):
            ours = self._ops.resize(crop, [view])[0].astype(int)
            theirs = Image.fromarray(crop).resize((view.size, view.size), FILTERS[view.method])
            means.append(np.mean(np.abs(ours - np.asarray(theirs))))
        return float(np.mean(means))


def _seconds_a_call(run: Callable, *arguments: Sequence) -> float:
    began = time.perf_counter()
    for each in zip(*arguments):
        run(*each)
    return (time.perf_counter() - began) / len(arguments[0])
