"""A patch embedding for pictures of other channels: timm's rule for `in_chans`."""

import math

import jax.numpy as jnp

KERNEL = 'patch_embedding'


def fit_channels(encoder: dict, channels: int, new: int) -> tuple[dict, list[str]]:
    """The encoder's parameters for pictures of `new` channels instead of `channels`.

    The kernels of the channels are repeated in their order, as many as are wanted, and multiplied
    by channels / new, so that like channels give what they gave; for one channel they are added up.

    Returns:
      (parameters, lines that say what was done).
    """
    if new == channels:
        return encoder, []
    kernel = encoder[KERNEL]['kernel']
    x_SCD = kernel.reshape(-1, channels, kernel.shape[1])  # rows are (place, channel)
    if new == 1:
        x_SCD, done = jnp.sum(x_SCD, axis=1, keepdims=True), 'added up for one'
    else:
        repeated = jnp.tile(x_SCD, (1, math.ceil(new / channels), 1))
        x_SCD, done = repeated[:, :new] * (channels / new), f'repeated for {new}'
    embedding = encoder[KERNEL] | {'kernel': x_SCD.reshape(-1, kernel.shape[1])}
    return encoder | {KERNEL: embedding}, [
        f"the patch embedding's kernels of {channels} channels are {done} (timm's in_chans)"
    ]
