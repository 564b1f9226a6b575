"""Mixup, CutMix and random erasing on the device, as timm 0.3.2, the official code's, defines them.

Pictures are normalised, float [B, H, W, C] or [H, W, C].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from beit_jax.errors import check
from beit_jax.settings.intervals import Share

ATTEMPTS = 10  # for a rectangle to erase; a picture where all fail stays whole
ERASED_AREA = 0.02, 1 / 3  # share of the picture
MIN_ASPECT = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of pairs of pictures and of their targets; one draw a global batch, whatever the mesh
    and the parts it is accumulated in (timm, of a process each, draws once a process)."""

    mixup: float = 0.8  # alpha of the beta distribution of mixup's share; 0: no mixup
    cutmix: float = 1.0  # alpha of CutMix; 0: no CutMix
    probability: Share = 1.0  # that a batch is mixed at all
    switch: Share = 0.5  # probability of CutMix where both are on

    def check_batch(self, batch_size: int) -> None:
        """Raises RequestError where the pictures of a batch do not make pairs."""
        check(
            not (self.mixup or self.cutmix) or batch_size % 2 == 0,
            f'mixup and CutMix mix pairs of pictures, but config.batch_size is '
            f'{batch_size}: make it even, or set config.mix.mixup=0 and config.mix.cutmix=0.',
        )


def draw_weights(key, config: MixConfig, height: int, width: int):
    """What is left of a picture's pixels that is mixed with its partner, float32 [H, W] in [0, 1].

    One share everywhere (mixup); or 0 inside a rectangle, which may be cut off at the border, and 1
    outside (CutMix); or ones.
    """
    mixed_key, switch_key, mixup_key, cutmix_key, place_key = jax.random.split(key, 5)
    # an alpha of 0 is never drawn from
    share = jax.random.beta(mixup_key, config.mixup or 1.0, config.mixup or 1.0)
    side = jnp.sqrt(1 - jax.random.beta(cutmix_key, config.cutmix or 1.0, config.cutmix or 1.0))
    centre = jax.random.uniform(place_key, (2,))
    inside_HW = _inside(height, side, centre[0])[:, None] & _inside(width, side, centre[1])
    cut = bool(config.cutmix)
    if config.mixup and config.cutmix:
        cut = jax.random.uniform(switch_key) < config.switch
    weights_HW = jnp.where(cut, jnp.where(inside_HW, 0.0, 1.0), share)
    return jnp.where(jax.random.uniform(mixed_key) < config.probability, weights_HW, 1.0)


def _inside(size, side, centre):
    """Which pixels of an axis lie in a box of length `side` around `centre`, bool [size].

    Both are shares of the axis. Half of the length is rounded down on both sides: of an odd one a
    pixel is missing (not so in later timm).
    """
    half = jnp.floor(size * side).astype(jnp.int32) // 2
    middle = jnp.floor(size * centre).astype(jnp.int32)
    pixel = jnp.arange(size)
    return (pixel >= middle - half) & (pixel < middle + half)


def mix(weights_HW, images_BHWC, targets_BC):
    """(pictures, targets) mixed with those of their partners.

    Rows 2k and 2k + 1 are a pair, which mostly lies on one device; B is even. Targets are mixed by
    the share of the pixels, that is the mean of the weights.
    """
    share = jnp.mean(weights_HW)
    weights_HW1 = weights_HW[..., None].astype(images_BHWC.dtype)
    return (
        images_BHWC * weights_HW1 + _partners(images_BHWC) * (1 - weights_HW1),
        targets_BC * share + _partners(targets_BC) * (1 - share),
    )


def _partners(x):
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def draw_rectangle(key, probability: float, height: int, width: int):
    """(top, left, height, width), int32: what is erased of a picture; all 0 where nothing is.

    A share of the area in [0.02, 1/3], uniform, with a log-uniform aspect in [0.3, 1/0.3]: the
    first of ten attempts that is smaller than the picture.
    """
    erase_key, area_key, aspect_key, place_key = jax.random.split(key, 4)

    def draw(key, low, high):
        return jax.random.uniform(key, (ATTEMPTS,), minval=low, maxval=high)

    areas = draw(area_key, *ERASED_AREA) * (height * width)
    aspects = jnp.exp(draw(aspect_key, math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
    sizes = areas * aspects, areas / aspects
    heights, widths = (jnp.rint(jnp.sqrt(size)).astype(jnp.int32) for size in sizes)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = heights[first], widths[first]
    places = jax.random.uniform(place_key, (2,)) * jnp.stack([height - h + 1, width - w + 1])
    top, left = jnp.floor(places).astype(jnp.int32)
    erased = jnp.any(fits) & (jax.random.uniform(erase_key) < probability)
    return jnp.where(erased, jnp.stack([top, left, h, w]), 0)


def erase(keys_B, images_BHWC, probability: float):
    """Fills a rectangle of some pictures with normal noise, a number a pixel and channel.

    timm's RandomErasing, mode 'pixel'.
    """
    if not probability:
        return images_BHWC

    def erase_one(key, image_HWC):
        place_key, noise_key = jax.random.split(key)
        top, left, h, w = draw_rectangle(place_key, probability, *image_HWC.shape[:2])
        row, column = jnp.arange(image_HWC.shape[0])[:, None], jnp.arange(image_HWC.shape[1])
        inside_HW = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
        inside_HW1 = inside_HW[..., None]
        noise_HWC = jax.random.normal(noise_key, image_HWC.shape, image_HWC.dtype)
        return jnp.where(inside_HW1, noise_HWC, image_HWC)

    return jax.vmap(erase_one)(keys_B, images_BHWC)
