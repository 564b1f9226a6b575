"""Pictures to patches and back.

Shape legend: B images, P patches in reading order, V values of a patch, in (row, column, channel)
order.
"""

import math


def patchify(images_BHWC, patch_size: int):
    """[B, height, width, C] -> [B, P, V], V = patch_size * patch_size * C."""
    batch, height, width, channels = images_BHWC.shape
    rows, columns, values = height // patch_size, width // patch_size, patch_size**2 * channels
    # the pixels of a row of a patch with their channels, or a TPU takes twice as long
    x = images_BHWC.reshape(batch, rows, patch_size, columns, patch_size * channels)
    return x.transpose(0, 1, 3, 2, 4).reshape(batch, rows * columns, values)


def unpatchify(patches_BPV, grid: tuple[int, int], channels: int = 3):
    """The inverse of `patchify`; grid: rows and columns of patches."""
    (rows, columns), size = grid, math.isqrt(patches_BPV.shape[-1] // channels)
    x = patches_BPV.reshape(-1, rows, columns, size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * size, columns * size, channels)
