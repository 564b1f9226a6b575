"""Positions for another grid: what pre-training learned about places, put where it is needed.

As run_class_finetuning.py:337-440 has it. Both kinds of positions are resized by a matrix for each
axis, as interpolation is linear in what is interpolated.
"""

import functools

import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

from beit_jax.models.layers import num_relative_positions
from beit_jax.models.resize import resample_grid, resize_position_embedding

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


def resize_bias_table(table_RH, grid: tuple[int, int], new_grid: tuple[int, int]):
    """A bias table [R, heads] for another grid of patches (rows, columns).

    Its last three rows, those of CLS, stay as they are.
    """
    offsets = table_RH[:-3].reshape(2 * grid[0] - 1, 2 * grid[1] - 1, -1)
    resized = resample_grid(offsets, *map(_bias_matrix, grid, new_grid))
    resized = resized.reshape(num_relative_positions(new_grid) - 3, -1)
    return jnp.concatenate([resized, table_RH[-3:]])


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
