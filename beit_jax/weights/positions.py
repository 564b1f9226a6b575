"""Positions for another grid: what pre-training learned about places, put where it is needed.

As run_class_finetuning.py:337-440 has it. Both kinds of positions are resized by a matrix for each
axis, as interpolation is linear in what is interpolated.
"""

import functools

import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

from beit_jax.models.layers import num_relative_positions

BIAS = 'position_bias'


@functools.lru_cache
def _bias_matrix(old: int, new: int) -> np.ndarray:
    """[2 new - 1, 2 old - 1]: from the offsets of an axis of `old` patches to those of `new`.

    The old offsets are thought to lie at 0, +-1, +-(1 + q), ..., with the ratio q that lets the
    last one meet the largest new offset: near offsets, which matter most, keep their values.
    Between them runs a cubic spline.
    """
    if old == new:
        return np.eye(2 * old - 1)
    low, high = 1.01, 1.5
    # as coarse as the official bisection: a better ratio would move the outer places by 1e-4
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1:
            high = ratio
        else:
            low = ratio
    side = np.cumsum(ratio ** np.arange(old - 1))
    places = np.concatenate([-side[::-1], [0.0], side])
    wanted = np.clip(np.arange(1.0 - new, new), places[0], places[-1])
    if old < 3:  # too few for a cubic
        return np.stack([np.interp(wanted, places, one) for one in np.eye(len(places))], axis=1)
    return CubicSpline(places, np.eye(len(places)), bc_type='not-a-knot')(wanted)


@functools.lru_cache
def _bicubic_matrix(old: int, new: int) -> np.ndarray:
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


def resize_bias_table(table_RH, grid: tuple[int, int], new_grid: tuple[int, int]):
    """A bias table [R, heads] for another grid of patches (rows, columns).

    Its last three rows, those of CLS, stay as they are.
    """
    offsets = table_RH[:-3].reshape(2 * grid[0] - 1, 2 * grid[1] - 1, -1)
    resized = _resize(offsets, *map(_bias_matrix, grid, new_grid))
    resized = resized.reshape(num_relative_positions(new_grid) - 3, -1)
    return jnp.concatenate([resized, table_RH[-3:]])


def resize_position_embedding(embedding_ND, grid: tuple[int, int], new_grid: tuple[int, int]):
    """Absolute positions [1 + P, D] for another grid of patches; the first, CLS's, stays."""
    resized = _resize(embedding_ND[1:].reshape(*grid, -1), *map(_bicubic_matrix, grid, new_grid))
    return jnp.concatenate([embedding_ND[:1], resized.reshape(new_grid[0] * new_grid[1], -1)])


def _resize(x_hwD, rows, columns):
    rows, columns = (jnp.asarray(matrix, x_hwD.dtype) for matrix in (rows, columns))
    return jnp.einsum('ah,bw,hwd->abd', rows, columns, x_hwD, precision='highest')


def fit_positions(
    encoder: dict, grid: tuple[int, int], positions: str, new_grid: tuple[int, int]
) -> tuple[dict, list[str]]:
    """The encoder's parameters with its positions as another model wants them.

    A bias table that the layers share is given to each of them where `positions` has 'layer_bias',
    and tables and absolute positions are interpolated where `new_grid` differs from `grid`.

    Returns:
      (parameters, lines that say what was done).
    """
    encoder, notes = dict(encoder), []
    if 'layer_bias' in positions and BIAS in encoder:
        shared = encoder.pop(BIAS)
        encoder['blocks'] = {
            name: _with_bias(block, shared) for name, block in encoder['blocks'].items()
        }
        notes.append('each layer starts with the relative position bias that the layers shared')
    if tuple(grid) == tuple(new_grid):
        return encoder, notes

    def resize(bias):
        return {'table': resize_bias_table(bias['table'], grid, new_grid)}

    if BIAS in encoder:
        encoder[BIAS] = resize(encoder[BIAS])
    encoder['blocks'] = dict(encoder['blocks'])
    for name, block in encoder['blocks'].items():
        if BIAS in block['attention']:
            encoder['blocks'][name] = _with_bias(block, resize(block['attention'][BIAS]))
    if 'position_embedding' in encoder:
        encoder['position_embedding'] = resize_position_embedding(
            encoder['position_embedding'], grid, new_grid
        )
    notes.append(
        f'positions of {grid[0]} x {grid[1]} patches are interpolated to {new_grid[0]} x '
        f'{new_grid[1]}'
    )
    return encoder, notes


def _with_bias(block: dict, bias: dict) -> dict:
    return block | {'attention': block['attention'] | {BIAS: bias}}
