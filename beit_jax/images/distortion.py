"""Photometric distortion on the device, as mmsegmentation's PhotoMetricDistortion.

Colours only, so that a label map stays as it is. Each of four changes happens with probability 1/2;
contrast comes second or last. Pictures are float32 in [0, 1], RGB.
"""

import jax
import jax.numpy as jnp

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 180  # hue in turns
_DISTORT = 0x64697374  # sets the keys of the distortion apart from those of a step


def distort_views(seed: int, views_B, images_BHWC):
    """`distort` by the number of each view (uint32 [B]) alone, neither by its row nor the step."""
    key = jax.random.fold_in(jax.random.key(seed), _DISTORT)

    def distort_view(view, image_HWC):
        return distort(image_HWC, *draw_distortion(jax.random.fold_in(key, view)))

    return jax.vmap(distort_view)(views_B, images_BHWC)


def draw_distortion(key):
    """(brightness, factors, turns of the hue, whether contrast comes before the colours).

    Brightness is added; the factors, float32 [2], are of contrast and saturation. They are 0, or 1
    for a factor, where a change does not happen.
    """
    happens_key, amount_key, order_key = jax.random.split(key, 3)
    happens = jax.random.bernoulli(happens_key, 0.5, (4,))
    amounts = jnp.where(happens, jax.random.uniform(amount_key, (4,), minval=-1.0), 0.0)
    limits = jnp.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    brightness, contrast, saturation, hue = amounts * limits
    return brightness, 1 + jnp.stack([contrast, saturation]), hue, jax.random.bernoulli(order_key)


def distort(image_HWC, brightness, factors, hue, contrast_first):
    """One picture: brightness, contrast, saturation and hue, clipped to [0, 1] after each.

    mmsegmentation rounds to bytes besides.
    """
    contrast, saturation = factors
    image_HWC = jnp.clip(image_HWC + brightness, 0, 1)
    image_HWC = jnp.clip(image_HWC * jnp.where(contrast_first, contrast, 1), 0, 1)
    h, s, v = rgb_to_hsv(image_HWC)
    image_HWC = hsv_to_rgb((h + hue) % 1, jnp.clip(s * saturation, 0, 1), v)
    return jnp.clip(image_HWC * jnp.where(contrast_first, 1, contrast), 0, 1)


def rgb_to_hsv(image_HWC):
    """(hue in turns [0, 1), saturation, value), each [H, W]; grey has hue 0."""
    red, green, blue = jnp.moveaxis(image_HWC, -1, 0)
    value = jnp.max(image_HWC, axis=-1)
    range_ = value - jnp.min(image_HWC, axis=-1)
    divisor = jnp.where(range_ > 0, range_, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    return sixths / 6 % 1, range_ / jnp.where(value > 0, value, 1), value


def hsv_to_rgb(hue, saturation, value):
    """The inverse: [H, W] each -> [H, W, 3]."""
    sixths_HW3 = (hue[..., None] * 6 + jnp.array([5.0, 3.0, 1.0])) % 6
    share_HW3 = jnp.clip(jnp.minimum(sixths_HW3, 4 - sixths_HW3), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * share_HW3)
