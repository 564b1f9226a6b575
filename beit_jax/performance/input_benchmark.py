"""How fast a recipe's input is, stage by stage, against the PyTorch way of doing the same, written
with Pillow and NumPy as those do it."""

from collections.abc import Callable, Iterator
import functools
import importlib.util
import io
import itertools
import math
import os
import random
import statistics
import time

import numpy as np
from PIL import Image, ImageEnhance

from beit_jax.data.config import View
from beit_jax.data.pictures.boxes import DRAWS, center_box, random_box
from beit_jax.data.pictures.rand_augment import fill_color, parse_policy, rand_augment
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import check
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import make_task

BATCH = 32  # images
FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'lanczos3': Image.Resampling.LANCZOS}


def views_of(config: RunConfig) -> tuple[View, ...]:
    """What training reads of an image; for pre-training on tokens with the view of a tokenizer of 8
    pixels a token, as DALL-E's."""
    if config.task == 'pretrain' and config.target == 'tokens':
        return View('image', config.data.image_size), View(
            'token_image', 8 * config.grid[0], 'lanczos3'
        )
    return make_task(config).views


def benchmark_input(config: RunConfig, images: int, repeats: int, cores: int) -> dict:
    """Milliseconds an image and images per second of training's and evaluation's input and of their
    peers; all take turns in each repeat."""
    check(
        not config.data.label_maps,
        'label maps have no peer here: give a recipe of pre-training or of classification.',
    )
    available = sorted(os.sched_getaffinity(0))
    check(cores <= len(available), f'--cores={cores}, but this process has {len(available)}.')
    os.sched_setaffinity(0, available[-cores:])  # before TensorFlow and JAX start their threads
    from beit_jax.data import pipeline

    data, source, views = config.data, open_source(config.data, 'train'), views_of(config)
    ops = pipeline.image_ops(data)
    chosen = Subset(source, spread(source, images))
    chosen = Subset(chosen, _usable(chosen, ops))
    check(
        len(chosen) >= BATCH,
        f'{len(chosen)} of the {images} images looked at can be used: it takes {BATCH}.',
    )
    files = [chosen.read(i).image for i in range(len(chosen))]
    check(
        all(isinstance(file, bytes) for file in files),
        'images that are drawn are not files: give a folder or records.',
    )
    rows, sampler = np.arange(BATCH), Sampler(len(chosen), BATCH, config.seed)
    ways = {
        'training': lambda: pipeline.train_batches(chosen, sampler, views, data, rows),
        'training, its peer': lambda: _loaded(_Peer(chosen, training_peer, config, views)),
        'evaluation': lambda: itertools.chain.from_iterable(
            pipeline.evaluate_batches(chosen, BATCH, views[:1], data, rows, data.evaluate_crop)
            for _ in itertools.count()
        ),
        'evaluation, its peer': lambda: _loaded(_Peer(chosen, evaluation_peer, config, views)),
    }
    stages = _Stages(ops, config, views, files, chosen)
    seconds = {name: [] for name in (*ways, *stages.names)}
    for _ in range(repeats):
        for name, batches in ways.items():
            # a peer has one core: another would double what it makes
            seconds[name].append(
                _seconds(batches(), len(chosen), data.prefetch)
                * (cores if 'peer' not in name else 1)
            )
        for name, value in stages.measure():
            seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_stages = sum(median[name] for name in stages.names if name != 'transfer')
    return {
        'task': config.task,
        'image_ops': data.image_ops,
        'cores': cores,
        'images': len(chosen),
        'repeats': repeats,
        'peer': "in a worker of torch's DataLoader"
        if _has_torch()
        else 'without torch, as a worker of its DataLoader would',
        'bytes_per_image': statistics.mean(map(len, files)),
        'views': [f'{view.size} {view.method} {view.rand_augment}'.strip() for view in views],
        'core_milliseconds': {
            name: {'median': 1e3 * median[name], 'min': 1e3 * min(values), 'max': 1e3 * max(values)}
            for name, values in seconds.items()
        }
        | {'batch and the rest': {'median': 1e3 * (median['training'] - of_stages)}},
        'images_per_second_and_core': {name: 1 / median[name] for name in ways},
        'ratio': {
            name: statistics.median(
                theirs / ours for ours, theirs in zip(seconds[name], seconds[f'{name}, its peer'])
            )
            for name in ('training', 'evaluation')
        },
        'grey_levels_from_pillow': stages.errors(),
    }


def _usable(source: Source, ops) -> list[int]:
    def usable(index):
        try:
            return ops.decode_crop(source.read(index).image, center_box) is not None
        except OSError:
            return False

    return [index for index in range(len(source)) if usable(index)]


def _seconds(batches: Iterator, images: int, ahead: int) -> float:
    """Seconds an image; what was read ahead before the clock starts does not count, and nothing
    goes on after it."""
    for _ in range(ahead + 2):
        next(batches)
    count, began = math.ceil(images / BATCH), time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - began) / (count * BATCH)


class _Peer:
    """A data set as torch has them: what a peer makes of each image."""

    def __init__(self, source: Source, kind: Callable, config: RunConfig, views):
        self._source, self._kind, self._arguments, self._rng = (
            source,
            kind,
            (config, views),
            random.Random(0),
        )

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._kind(*self._arguments)(
            Image.open(io.BytesIO(self._source.read(index).image)), self._rng
        )


def _has_torch() -> bool:
    return importlib.util.find_spec('torch') is not None


def _loaded(peer: _Peer) -> Iterator:
    """Endless batches of a peer, by a worker of torch's DataLoader; without torch as such a worker
    makes them."""
    batches = itertools.cycle(
        [range(start, start + BATCH) for start in range(0, len(peer) - BATCH + 1, BATCH)]
    )
    if not _has_torch():
        return ([np.stack(each) for each in zip(*map(peer.__getitem__, rows))] for rows in batches)
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(peer, batch_sampler=batches, num_workers=1, multiprocessing_context='spawn')
    )


def training_peer(config: RunConfig, views) -> Callable:
    """BEiT's official order (datasets.py:33-56): colour jitter of the whole image, flip, one crop
    in two sizes, to float. For the other tasks timm's: crop, flip, RandAugment, to float."""
    data = config.data

    def picture(image: Image.Image, rng: random.Random):
        image = image.convert('RGB')
        if config.task == 'pretrain':
            image = color_jitter(image, data.color_jitter, rng)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        top, left, height, width = random_box(
            [rng.random() for _ in range(DRAWS)],
            image.height,
            image.width,
            data.crop_scale,
            data.crop_ratio,
        )
        crop = image.crop((left, top, left + width, top + height))
        made = []
        for view in views:
            resized = crop.resize((view.size, view.size), FILTERS[view.method])
            if config.task != 'pretrain' and rng.random() < 0.5:
                resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if view.rand_augment:
                resized = Image.fromarray(
                    _augment(np.asarray(resized), rng.getrandbits(40), view, data.mean)
                )
            made.append(
                to_float(resized, data.mean, data.std)
                if view is views[0]
                else to_float(resized, (-0.125,) * 3, (1.25,) * 3)
            )
        return made

    return picture


def evaluation_peer(config: RunConfig, views) -> Callable:
    """torchvision's: the shorter side to size / share, the central square, to float."""
    view = views[0]

    def picture(image: Image.Image, _):
        image = image.convert('RGB')
        side = round(view.size / config.data.evaluate_crop)
        scale = side / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), FILTERS[view.method]
        )
        left, top = (image.width - view.size) // 2, (image.height - view.size) // 2
        return [
            to_float(
                image.crop((left, top, left + view.size, top + view.size)),
                config.data.mean,
                config.data.std,
            )
        ]

    return picture


def _augment(picture: np.ndarray, number: int, view: View, mean) -> np.ndarray:
    return rand_augment(picture, parse_policy(view.rand_augment), 0, number, fill_color(mean))


def color_jitter(image: Image.Image, amounts, rng: random.Random) -> Image.Image:
    """torchvision's ColorJitter without hue: brightness, contrast and saturation in a random
    order."""
    changes = list(
        zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), amounts)
    )
    rng.shuffle(changes)
    for change, amount in changes:
        image = change(image).enhance(rng.uniform(max(0, 1 - amount), 1 + amount))
    return image


def to_float(image: Image.Image, mean, std) -> np.ndarray:
    """ToTensor and Normalize: float32 [3, H, W]."""
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
    pixels /= 255
    pixels -= np.reshape(np.float32(mean), (3, 1, 1))
    pixels /= np.reshape(np.float32(std), (3, 1, 1))
    return pixels


class _Stages:
    """The parts of our pipeline, each on its own, in one thread."""

    def __init__(self, ops, config, views, files, source):
        rng, data = np.random.default_rng(0), config.data
        self._ops, self._views, self._files, self._source, self._data = (
            ops,
            views,
            files,
            source,
            data,
        )
        draws = [rng.random(DRAWS).tolist() for _ in files]
        self._boxes = [
            lambda height, width, draw=draw: random_box(
                draw, height, width, data.crop_scale, data.crop_ratio
            )
            for draw in draws
        ]
        self._crops = [ops.decode_crop(file, box) for file, box in zip(files, self._boxes)]
        self.names = (
            'read',
            'decode the crop',
            *(f'resize to {view.size}' for view in views),
            *(f'RandAugment of {view.size}' for view in views if view.rand_augment),
            'transfer',
        )

    def measure(self) -> Iterator[tuple[str, float]]:
        """Seconds an image of each."""
        import jax

        yield 'read', self._time(self._source.read, range(len(self._files)))
        yield 'decode the crop', self._time(self._ops.decode_crop, self._files, self._boxes)
        for view in self._views:
            yield (
                f'resize to {view.size}',
                self._time(lambda crop, view=view: self._ops.resize(crop, [view]), self._crops),
            )
        for view in self._views:
            if view.rand_augment:
                pictures = [self._ops.resize(crop, [view])[0] for crop in self._crops]
                augment = functools.partial(_augment, view=view, mean=self._data.mean)
                yield (
                    f'RandAugment of {view.size}',
                    self._time(augment, pictures, range(len(pictures))),
                )
        batch = [np.zeros([BATCH, view.size, view.size, 3], np.uint8) for view in self._views]
        count = range(len(self._files) // BATCH)
        yield (
            'transfer',
            self._time(lambda _: jax.block_until_ready(jax.device_put(batch)), count) / BATCH,
        )

    @staticmethod
    def _time(run: Callable, *arguments) -> float:
        """Seconds a call."""
        began = time.perf_counter()
        for each in zip(*arguments):
            run(*each)
        return (time.perf_counter() - began) / len(arguments[0])

    def errors(self) -> dict:
        """{view: mean difference from Pillow's resize of the same crop}, in grey levels of 255."""

        def mean(view):
            made = (
                np.abs(
                    self._ops.resize(crop, [view])[0].astype(int)
                    - np.asarray(
                        Image.fromarray(crop).resize((view.size, view.size), FILTERS[view.method])
                    )
                )
                for crop in map(np.ascontiguousarray, self._crops)
            )
            return float(np.mean([np.mean(each) for each in made]))

        return {str(view.size): mean(view) for view in self._views}
