"""RandAugment as timm defines it (arXiv 1909.13719; `rand-m9-mstd0.5-inc1`): a few random
operations of Pillow on each picture.

Magnitudes run from 0 to 10. What is drawn follows from the number of the view alone.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from beit_jax.data.sampler import random_bits
from beit_jax.errors import check

LIMIT = 10.0  # the largest magnitude
_KEY = 0x72616E64  # sets these draws apart from others by the same numbers


@dataclasses.dataclass(frozen=True)
class Policy:
    """Operations a picture, their magnitude and its deviation, and the probability of each."""

    magnitude: float = 10.0
    deviation: float = 0.0
    layers: int = 2
    probability: float = 0.5


@functools.lru_cache
def parse_policy(text: str) -> Policy:
    """timm's notation: 'rand', then m (magnitude), mstd (its deviation), n (operations), p
    (probability of each) and inc1, in any order.

    Raises:
      RequestError: anything else. Operations grow stronger with the magnitude (inc1); the older
        set, inc0, is not offered.
    """
    first, *rest = text.split('-')
    matches = [re.fullmatch(r'(m|mstd|n|p|inc)(\d+(?:\.\d+)?)', part) for part in rest]
    settings = dict(match.groups() for match in matches if match)
    check(
        first == 'rand' and len(settings) == len(rest) and settings.get('inc') == '1',
        f"config.rand_augment={text!r}: use timm's notation with inc1, for example "
        'rand-m9-mstd0.5-inc1, or leave it empty.',
    )
    policy = Policy(
        float(settings.get('m', LIMIT)),
        float(settings.get('mstd', 0)),
        int(float(settings.get('n', 2))),
        float(settings.get('p', 0.5)),
    )
    check(
        policy.magnitude <= LIMIT and policy.probability <= 1,
        f'config.rand_augment={text!r}: the magnitude is at most {LIMIT:g}, the probability at '
        'most 1.',
    )
    return policy


# (picture, magnitude in [0, 10], sign +-1, fill colour) -> picture
Operation = Callable[[Image.Image, float, int, tuple[int, int, int]], Image.Image]


def _affine(matrix: Callable[[Image.Image, float], tuple]) -> Operation:
    def operation(image, magnitude, sign, fill):
        data = matrix(image, sign * magnitude / LIMIT)
        bicubic = Image.Resampling.BICUBIC
        return image.transform(image.size, Image.Transform.AFFINE, data, bicubic, fillcolor=fill)

    return operation


def _enhance(kind) -> Operation:
    def operation(image, magnitude, sign, fill):
        return kind(image).enhance(max(0.1, 1 + sign * 0.9 * magnitude / LIMIT))

    return operation


def _rotate(image, magnitude, sign, fill):
    return image.rotate(sign * 30 * magnitude / LIMIT, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image, magnitude, sign, fill):
    # at the limit timm asks for 0 bits, which Pillow refuses today and drew black before
    return ImageOps.posterize(image, max(1, 4 - int(4 * magnitude / LIMIT)))


def _solarize(image, magnitude, sign, fill):
    return ImageOps.solarize(image, 256 - min(256, int(256 * magnitude / LIMIT)))


def _solarize_add(image, magnitude, sign, fill):
    added = min(128, int(110 * magnitude / LIMIT))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


OPERATIONS: dict[str, Operation] = {
    'AutoContrast': lambda image, magnitude, sign, fill: ImageOps.autocontrast(image),
    'Equalize': lambda image, magnitude, sign, fill: ImageOps.equalize(image),
    'Invert': lambda image, magnitude, sign, fill: ImageOps.invert(image),
    'Rotate': _rotate,
    'Posterize': _posterize,
    'Solarize': _solarize,
    'SolarizeAdd': _solarize_add,
    'Color': _enhance(ImageEnhance.Color),
    'Contrast': _enhance(ImageEnhance.Contrast),
    'Brightness': _enhance(ImageEnhance.Brightness),
    'Sharpness': _enhance(ImageEnhance.Sharpness),
    'ShearX': _affine(lambda image, level: (1, 0.3 * level, 0, 0, 1, 0)),
    'ShearY': _affine(lambda image, level: (1, 0, 0, 0.3 * level, 1, 0)),
    'TranslateX': _affine(lambda image, level: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    'TranslateY': _affine(lambda image, level: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}
_NAMES, _NORMAL = tuple(OPERATIONS), NormalDist()


def draw(policy: Policy, seed: int, view: int) -> list[tuple[str, float, int]]:
    """The operations of a view in order: (name, magnitude in [0, 10], sign)."""
    raw = random_bits(4 * policy.layers, seed ^ _KEY, view).reshape(-1, 4)
    drawn = []
    for which, used, deviate, sign in (raw + 0.5) / 2.0**64:
        if used < policy.probability:
            name = _NAMES[int(which * len(_NAMES))]
            magnitude = policy.magnitude + policy.deviation * _NORMAL.inv_cdf(deviate)
            drawn.append((name, min(max(magnitude, 0.0), LIMIT), 1 if sign < 0.5 else -1))
    return drawn


def fill_color(mean: Sequence[float], top: int = 255) -> tuple[int, ...]:
    """What a picture is moved away from shows: the mean of the pixels, in [0, top]."""
    return tuple(min(top, round(top * value)) for value in mean)


def rand_augment(
    picture: np.ndarray, policy: Policy, seed: int, view: int, fill: tuple[int, int, int]
) -> np.ndarray:
    """uint8 [H, W, 3] -> the same, augmented; `fill` colours what a picture is moved away from."""
    image = Image.fromarray(picture)
    for name, magnitude, sign in draw(policy, seed, view):
        image = OPERATIONS[name](image, magnitude, sign, fill)
    return np.asarray(image)
