"""Convolutions on pairs of columns, for layers that are narrow for a TPU. Of its unit of 128 channels a layer of 64 leaves half idle, or three
quarters; two neighbouring pixels side by side have 128. The kernels become as wide, with zeros in between: the sums are the same.

Shape legend: B images, H rows, W columns, C channels. Pairs are [B, H, W / 2, 2 C], which is [B, H, W, C] in the same order of numbers.
"""
import jax
import jax.numpy as jnp

LANES = 128  # channels that a TPU multiplies at a time


def to_pairs(x_BHWC: jax.Array) -> jax.Array:
    """The same numbers as [B, H, W / 2, 2 C]; W is even."""
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H, W // 2, 2 * C)


def pair_kernel(kernel: jax.Array) -> jax.Array:
    """[rows, columns, in, out], columns odd -> [rows, pairs, 2 in, 2 out] that acts on pairs as `kernel` on pixels, both with padding 'SAME'."""
    rows, columns, inputs, outputs = kernel.shape
    reach = (columns // 2 + 1) // 2  # in pairs, to either side
    pairs = 2 * reach + 1
    margin = pairs - columns // 2
    padded = jnp.pad(kernel, ((0, 0), (margin, margin), (0, 0), (0, 0)))
    # from pixel s of a pair to pixel t of the pair in the middle, for every pair that is reached
    blocks = [[padded[:, 1 + s - t:2 * pairs + s - t:2] for t in (0, 1)] for s in (0, 1)]
    return jnp.stack([jnp.stack(row, axis=3) for row in blocks], axis=2).reshape(rows, pairs, 2 * inputs, 2 * outputs)


def pool_pairs(x_BHPC: jax.Array) -> jax.Array:
    """The largest of 2 x 2 pixels: pairs [B, H, W / 2, 2 C] -> pixels [B, H / 2, W / 2, C]."""
    channels = x_BHPC.shape[-1] // 2
    larger = jnp.maximum(x_BHPC[..., :channels], x_BHPC[..., channels:])
    return jax.lax.reduce_window(larger, -jnp.inf, jax.lax.max, (1, 2, 1, 1), (1, 2, 1, 1), 'VALID')
