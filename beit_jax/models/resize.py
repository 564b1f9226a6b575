"""Resizing on the device, as torch does it: bilinear interpolation, adaptive pooling, and the
bicubic interpolation of positions.

All are linear in each axis: a small matrix for the rows and one for the columns. Shape legend: B
images, h w rows and columns, H W those of the result, C channels.
"""

import functools

import jax.numpy as jnp
import numpy as np


def resize(x_BhwC, size: tuple[int, int]):
    """Bilinear interpolation to `size` (rows, columns), [B, h, w, C] -> [B, H, W, C], dtype as
    given: torch's with align_corners=False, not antialiased."""
    return _resample(x_BhwC, *map(bilinear_matrix, x_BhwC.shape[1:3], size))


def adaptive_pool(x_BhwC, size: int):
    """Means over size x size rectangles that cover everything and may overlap, as torch's
    AdaptiveAvgPool2d: [B, h, w, C] -> [B, size, size, C], dtype as given."""
    matrices = (_pooling_matrix(length, size) for length in x_BhwC.shape[1:3])
    # shares such as 1 / 20 are too coarse in bfloat16
    return _resample(x_BhwC.astype(jnp.float32), *matrices).astype(x_BhwC.dtype)


def _resample(x_BhwC, rows_Hh, columns_Ww):
    rows_Hh, columns_Ww = (jnp.asarray(matrix, x_BhwC.dtype) for matrix in (rows_Hh, columns_Ww))
    return jnp.einsum('Hh,Ww,bhwc->bHWc', rows_Hh, columns_Ww, x_BhwC, precision='highest')


@functools.lru_cache
def bilinear_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: torch's bilinear interpolation along one axis (centres of pixels aligned, borders
    repeated, not antialiased)."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))


@functools.lru_cache
def _pooling_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: cell i is the mean of floor(i old / new) up to ceil((i + 1) old / new)."""
    cells, places = np.arange(new)[:, None], np.arange(old)
    inside = (places >= cells * old // new) & (places < -(-(cells + 1) * old // new))
    return inside / inside.sum(axis=1, keepdims=True)


@functools.lru_cache
def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: torch's bicubic interpolation along one axis.

    a = -0.75, centres of pixels aligned, borders repeated.
    """

    def kernel(x):
        x = np.abs(x)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    matrix, centres = np.zeros((new, old)), (np.arange(new) + 0.5) * old / new - 0.5
    for tap in range(-1, 3):
        source = np.floor(centres).astype(int) + tap
        np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), kernel(centres - source))
    return matrix


def resize_position_embedding(embedding_ND, grid: tuple[int, int], new_grid: tuple[int, int]):
    """Absolute positions [1 + P, D] for another grid of patches; the first, CLS's, stays."""
    resized = resample_grid(
        embedding_ND[1:].reshape(*grid, -1), *map(bicubic_matrix, grid, new_grid)
    )
    return jnp.concatenate([embedding_ND[:1], resized.reshape(new_grid[0] * new_grid[1], -1)])


def resample_grid(x_hwD, rows, columns):
    """[h, w, D] by a matrix for each axis, NumPy [H, h] and [W, w] -> [H, W, D]."""
    rows, columns = (jnp.asarray(matrix, x_hwD.dtype) for matrix in (rows, columns))
    return jnp.einsum('ah,bw,hwd->abd', rows, columns, x_hwD, precision='highest')
