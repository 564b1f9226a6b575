"""Colour on the device: jitter (brightness, contrast, saturation) and normalisation.

Pictures are float in [0, 1] unless said otherwise.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

# ITU-R 601 luma, as Pillow's convert('L').
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_JITTER = 0x6A697474  # sets the keys of the colours apart from those of a step
_ORDERS = np.array(list(itertools.permutations(range(3))), np.int32)


def to_float(images_BHWC):
    """uint8 in [0, 255] or uint16 in [0, 65535] -> float32 in [0, 1]; float in [0, 1] as it is, in
    float32."""
    pixels_BHWC = images_BHWC.astype(jnp.float32)
    is_whole = jnp.issubdtype(images_BHWC.dtype, jnp.integer)
    return pixels_BHWC / jnp.iinfo(images_BHWC.dtype).max if is_whole else pixels_BHWC


def normalize(images_BHWC, mean, std):
    """(images - mean) / std per channel; `mean` and `std` are for pixels in [0, 1]."""
    return (images_BHWC - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def patch_statistics(patches_BPV):
    """(mean, deviation) of all values of each patch, float32 [..., 1].

    The deviation, sqrt(variance + 1e-6), is never 0.
    """
    mean_BP1 = jnp.mean(patches_BPV, axis=-1, keepdims=True)
    variance_BP1 = jnp.var(patches_BPV, axis=-1, keepdims=True)
    return mean_BP1, jnp.sqrt(variance_BP1 + 1e-6)


def draw_jitter(key, strengths: tuple[float, float, float]):
    """(order int32 [3], factors float32 [3]).

    Brightness 0, contrast 1, saturation 2 in random order, each by a factor in 1 +- strength.
    """
    order_key, factor_key = jax.random.split(key)
    strengths = jnp.asarray(strengths, jnp.float32)
    low, high = jnp.maximum(1 - strengths, 0), 1 + strengths
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
    return jnp.asarray(_ORDERS)[jax.random.randint(order_key, (), 0, len(_ORDERS))], factors


def apply_jitter(image_HWC, order, factors, grey):
    """Blends one picture with black, a mean grey and its grey picture, in the given order.

    Clips to [0, 1] after each. The arithmetic of torchvision's ColorJitter without hue, in float
    instead of rounded bytes, on a part of a picture whose mean grey is `grey`.
    """
    # by channels: a TPU, for which the last axis is 128 wide, takes half of the time
    channels = [image_HWC[..., i] for i in range(image_HWC.shape[-1])]
    for operation in order:
        brightness, contrast = operation == 0, operation == 1
        # other pictures than RGB have no saturation: its factor is 1, whatever is blended
        luma = sum(weight * one for weight, one in zip(LUMA, channels)) if len(channels) == 3 else 0
        other = jnp.where(brightness, 0.0, jnp.where(contrast, grey, luma))
        factor = factors[operation]
        channels = [jnp.clip(other + factor * (one - other), 0, 1) for one in channels]
        # that of the whole picture after it, but for what it clips there
        grey = jnp.where(brightness, jnp.minimum(grey * factors[0], 1), grey)
    return jnp.stack(channels, axis=-1)


def jitter_views(seed: int, batch: dict, images_BHWC, strengths: tuple[float, float, float]):
    """`jitter` by the number of each view (`view` of the batch, uint32 [B]) alone, neither by its
    row nor by the step, and the mean grey of the picture that it shows a part of (`grey`).

    So all pictures of a view agree.
    """
    if not any(strengths):
        return images_BHWC
    key = jax.random.fold_in(jax.random.key(seed), _JITTER)
    keys_B = jax.vmap(lambda view: jax.random.fold_in(key, view))(batch['view'])
    return jitter(keys_B, images_BHWC, strengths, batch['grey'])


def jitter(keys_B, images_BHWC, strengths: tuple[float, float, float], greys_B):
    """Pixels in [0, 1] -> the same, jittered as each image's key decides.

    Pictures of any size with one key are jittered alike. `greys_B`: float32, the mean of
    0.299 R + 0.587 G + 0.114 B in [0, 1] of the whole picture that each is a part of (of other
    pictures than RGB the mean of all channels; they have no saturation).
    """
    orders, factors = jax.vmap(lambda key: draw_jitter(key, strengths))(keys_B)
    return jax.vmap(apply_jitter)(images_BHWC, orders, factors, greys_B)
