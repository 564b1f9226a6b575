"""Which patches are hidden: blockwise masks, uniformly random ones, or none at all.

Blockwise as masking_generator.py has it (paper, Algorithm 1); random is section 3.3, Table 4,
"without blockwise masking", and none is "without masking". Pure functions of a key, jitted and
vectorised, so that masks are drawn on the device inside the step. Shape legend: B images, h w rows
and columns of patches, P = h * w, K slots.
"""

import dataclasses
import functools
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from beit_jax.errors import check, one_of
from beit_jax.models.platform import by_rows
from beit_jax.settings.intervals import Count, Interval

KINDS = ('blockwise', 'random', 'none')
ATTEMPTS = 10  # for one block; a block that fails as often ends the mask
_FILL = 0x66696C6C  # sets the key of what fills up apart from those of the attempts


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How patches are hidden; the defaults are BEiT's for 14 x 14 patches."""

    # blockwise | random | none (nothing is hidden, and the other settings are not used)
    kind: str = 'blockwise'
    patches: Count = 75  # hidden at most (blockwise) or exactly (random, or `exact`)
    min_block: Count = 16  # patches of the smallest block that is tried while as many are wanted
    # height over width of a block is log-uniform in [min_aspect, 1 / min_aspect]
    min_aspect: Annotated[float, Interval(0.01, 1)] = 0.3
    # blockwise masks that end early are filled up with random patches: exactly `patches` (BEiT v2)
    exact: bool = False

    def __post_init__(self):
        one_of('config.mask.kind', self.kind, KINDS)

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises RequestError where a picture has too few patches, or may stay without a mask."""
        if self.kind == 'none':
            return
        there = grid[0] * grid[1]
        check(
            self.patches <= there,
            f'config.mask.patches is {self.patches} but a picture has {grid[0]} x {grid[1]} = '
            f'{there} patches: hide fewer, or change config.data.image_size or '
            'config.model.patch_size.',
        )
        check(
            self.kind == 'random' or min(grid) > 1,
            f'blockwise masks need at least 2 x 2 patches, the picture has {grid[0]} x {grid[1]}: '
            'set config.mask.kind=random.',
        )
        check(
            self.kind == 'random' or self.min_block <= self.patches,
            f'config.mask.min_block {self.min_block} is above config.mask.patches '
            f'{self.patches}: no block may fit and a picture stay without a mask. Lower min_block.',
        )


class Masks(NamedTuple):
    """Hidden patches, as a picture and as a list of static length."""

    mask_BP: jax.Array  # bool, true where hidden, in reading order
    # int32, the hidden patches in reading order, and 0 for what K has more; K = 0 without masks
    slots_BK: jax.Array
    weights_BK: jax.Array  # float32, 1 for a slot that is used, else 0


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_masks(keys_B: jax.Array, config: MaskConfig, grid: tuple[int, int]) -> Masks:
    """One mask a key. grid: rows and columns of patches."""
    if config.kind == 'none':
        batch = keys_B.shape[0]
        return Masks(
            jnp.zeros((batch, grid[0] * grid[1]), bool),
            jnp.zeros((batch, 0), jnp.int32),
            jnp.zeros((batch, 0), jnp.float32),
        )
    draw = _random if config.kind == 'random' else _filled if config.exact else _blockwise
    masks = by_rows(jax.vmap(lambda key: draw(key, config, grid)[0]), keys_B)
    mask_BP = masks.reshape(keys_B.shape[0], -1)
    slots = lambda mask_P: jnp.nonzero(mask_P, size=config.patches, fill_value=0)[0]
    slots_BK = jax.vmap(slots)(mask_BP)
    used_BK = jnp.arange(config.patches) < jnp.sum(mask_BP, axis=-1, keepdims=True)
    return Masks(mask_BP, slots_BK.astype(jnp.int32), used_BK.astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def count_blocks(keys_B: jax.Array, config: MaskConfig, grid: tuple[int, int]) -> jax.Array:
    """How many blocks each blockwise mask has, int32 [B]: for comparing distributions."""
    return jax.vmap(lambda key: _blockwise(key, config, grid)[1])(keys_B)


def _random(key, config, grid):
    order = jax.random.permutation(key, grid[0] * grid[1])
    return order < config.patches, 1


def _filled(key, config, grid):
    """`_blockwise`, and of the patches that it leaves as many as are wanted still, each as likely
    (beit2/masking_generator.py:91)."""
    hidden_hw, blocks = _blockwise(key, config, grid)
    order = jax.random.permutation(jax.random.fold_in(key, _FILL), hidden_hw.size)
    order = order.reshape(grid) - hidden_hw * hidden_hw.size  # blocks come before all others
    return order <= jnp.sort(order.ravel())[config.patches - 1], blocks


def _blockwise(key, config, grid):
    """(hidden, bool [h, w]; number of blocks). One turn of the loop is one attempt at one block.

    A row of patches is a row of bits, 32 to a word: 14 words for 14 x 14.
    """
    height, width = grid
    rows_h, columns_w = jnp.arange(height), jnp.arange(width)
    words = -(-width // 32)
    bit_w = jnp.uint32(1) << (columns_w % 32).astype(jnp.uint32)
    log_aspect = math.log(config.min_aspect)

    def attempt(state):
        turn, failures, blocks, count, hidden_hn = state
        bits_2 = jax.random.bits(jax.random.fold_in(key, turn), (2,), jnp.uint32)
        bits_4 = jnp.concatenate([bits_2 >> 16, bits_2 & 0xFFFF])
        u_area, u_aspect, u_top, u_left = bits_4.astype(jnp.float32) / 65536
        wanted = config.patches - count
        # Where fewer than min_block patches are wanted, the area is drawn from [wanted, min_block],
        # as random.uniform(16, 3) would.
        area = config.min_block + u_area * (wanted - config.min_block)
        aspect = jnp.exp(log_aspect * (1 - 2 * u_aspect))
        h = jnp.rint(jnp.sqrt(area * aspect)).astype(jnp.int32)
        w = jnp.rint(jnp.sqrt(area / aspect)).astype(jnp.int32)
        top = (u_top * (height - h + 1)).astype(jnp.int32)
        left = (u_left * (width - w + 1)).astype(jnp.int32)
        bits_w = jnp.where((columns_w >= left) & (columns_w < left + w), bit_w, 0)
        bits_n = [jnp.sum(bits_w[i : i + 32], dtype=jnp.uint32) for i in range(0, width, 32)]
        bits_n, inside_h = jnp.stack(bits_n), (rows_h >= top) & (rows_h < top + h)
        block_hn = jnp.where(inside_h[:, None], bits_n, 0)
        added = jnp.sum(jax.lax.population_count(block_hn & ~hidden_hn).astype(jnp.int32))
        taken = (h < height) & (w < width) & (added > 0) & (added <= wanted)
        return (
            turn + 1,
            jnp.where(taken, 0, failures + 1),
            blocks + taken,
            count + jnp.where(taken, added, 0),
            jnp.where(taken, hidden_hn | block_hn, hidden_hn),
        )

    zero = jnp.int32(0)
    start = (zero, zero, zero, zero, jnp.zeros((height, words), jnp.uint32))
    unfinished = lambda state: (state[3] < config.patches) & (state[1] < ATTEMPTS)
    *_, blocks, _, hidden_hn = jax.lax.while_loop(unfinished, attempt, start)
    return hidden_hn[:, columns_w // 32] & bit_w > 0, blocks
