"""The peers of `benchmark input`: how PyTorch's pipelines make the same pictures, with Pillow and
NumPy, in a worker of torch's DataLoader."""

from collections.abc import Callable, Iterator, Sequence
import importlib.util
import io
import itertools
import random

import numpy as np
from PIL import Image, ImageEnhance

from beit_jax.data.config import View
from beit_jax.data.pictures.boxes import DRAWS, random_box
from beit_jax.data.pictures.rand_augment import fill_color, parse_policy, rand_augment
from beit_jax.data.sources.source import Source
from beit_jax.settings.run import RunConfig

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'lanczos3': Image.Resampling.LANCZOS}


class Peer:
    """A data set as torch has them: what a peer makes of each image.

    kind: `training_peer` or `evaluation_peer`.
    """

    def __init__(self, source: Source, kind: Callable, config: RunConfig, views: Sequence[View]):
        self._source, self._kind, self._arguments = source, kind, (config, views)
        self._rng = random.Random(0)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        image = Image.open(io.BytesIO(self._source.read(index).image))
        return self._kind(*self._arguments)(image, self._rng)


def how_loaded() -> str:
    """In words."""
    if _has_torch():
        return "in a worker of torch's DataLoader"
    return 'without torch, as a worker of its DataLoader would'


def loaded(peer: Peer, batch_size: int) -> Iterator:
    """Endless batches of a peer, by a worker of torch's DataLoader, or as that makes them."""
    starts = range(0, len(peer) - batch_size + 1, batch_size)
    batches = itertools.cycle([range(start, start + batch_size) for start in starts])
    if not _has_torch():
        return map(lambda rows: _stacked(map(peer.__getitem__, rows)), batches)
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(peer, batch_sampler=batches, num_workers=1, multiprocessing_context='spawn')
    )


def _has_torch() -> bool:
    return importlib.util.find_spec('torch') is not None


def _stacked(examples: Iterator) -> list[np.ndarray]:
    return list(map(np.stack, zip(*examples)))


def training_peer(config: RunConfig, views: Sequence[View]) -> Callable:
    """BEiT's official order (datasets.py:33-56): colour jitter of the whole image, flip, one crop
    in two sizes, to float. For the other tasks timm's: crop, flip, RandAugment, to float."""
    data, pretraining = config.data, config.task == 'pretrain'

    def picture(image: Image.Image, rng: random.Random):
        image = image.convert('RGB')
        if pretraining:
            image = color_jitter(image, data.color_jitter, rng)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        draws = [rng.random() for _ in range(DRAWS)]
        top, left, height, width = random_box(
            draws, image.height, image.width, data.crop_scale, data.crop_ratio
        )
        crop = image.crop((left, top, left + width, top + height))
        made = []
        for view in views:
            resized = crop.resize((view.size, view.size), FILTERS[view.method])
            if not pretraining and rng.random() < 0.5:
                resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if view.rand_augment:
                number = rng.getrandbits(40)
                resized = Image.fromarray(augment(np.asarray(resized), number, view, data.mean))
            first = view is views[0]  # the others are DALL-E's
            mean, std = (data.mean, data.std) if first else ((-0.125,) * 3, (1.25,) * 3)
            made.append(to_float(resized, mean, std))
        return made

    return picture


def evaluation_peer(config: RunConfig, views: Sequence[View]) -> Callable:
    """torchvision's: the shorter side to size / share, the central square, to float."""
    view, data = views[0], config.data

    def picture(image: Image.Image, _):
        image = image.convert('RGB')
        short, shorter = int(view.size / data.evaluate_crop), min(image.size)
        image = image.resize(
            [int(short * side / shorter) for side in image.size], FILTERS[view.method]
        )
        left, top = (round((side - view.size) / 2) for side in image.size)
        square = image.crop((left, top, left + view.size, top + view.size))
        return [to_float(square, data.mean, data.std)]

    return picture


def augment(picture: np.ndarray, number: int, view: View, mean) -> np.ndarray:
    """RandAugment with what `number` draws, as both sides do it."""
    return rand_augment(picture, parse_policy(view.rand_augment), 0, number, fill_color(mean))


def color_jitter(image: Image.Image, amounts, rng: random.Random) -> Image.Image:
    """torchvision's ColorJitter without hue: brightness, contrast, saturation in random order."""
    kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    changes = list(zip(kinds, amounts))
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
