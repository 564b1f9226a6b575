"""A residual block of the discrete VAE's encoder as one Pallas kernel for a TPU.

For blocks that are narrow there: of its unit of 128 channels convolutions of 64 leave half idle,
and the compiler takes the block for bound by memory. Here two rows lie side by side, so that all
products are 128 wide, and what is between the convolutions never leaves the chip.

The kernel goes down the picture, a band of rows a step. A layer is a pair of rows behind the one
before, which needs the row below, and the result a band: rows of an earlier step are kept. Shape
legend: B images, H rows, W columns, C channels, K hidden channels, P pairs of rows of a band; a
pair of rows of a hidden layer is [W, 2 K], the upper row first.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.models.platform import on_each_device, row_axes

LANES = 128  # channels that a TPU multiplies at a time
# pairs of rows, by the bytes of a number: as many as a chip has room for
_BAND = {2: range(7, 2, -1), 4: range(4, 2, -1)}
_ROWS = 16  # of a tile of bfloat16: what the columns of a picture must be a multiple of


def fits(x_BHWC, hidden: int) -> bool:
    """Whether the kernel takes such pictures."""
    width, channels = x_BHWC.shape[2:]
    whole_tiles = channels % LANES == 0 and width % _ROWS == 0
    return 2 * hidden == LANES and whole_tiles and _pairs(x_BHWC) > 0


def fused_block(x_BHWC, kernels, biases, gain: float, precision=None, interpret: bool = False):
    """x + gain * (four convolutions, each of relu(what is before it)), [B, H, W, C].

    On one TPU or, by rows, on the mesh in use; anywhere where the kernel is interpreted. The
    kernels are [3, 3, C, K], twice [3, 3, K, K] and [1, 1, K, C].
    """
    *wide, last = kernels
    weights = [*map(_on_row_pairs, wide), jnp.kron(jnp.eye(2), last[0, 0] * gain)]
    shifts = [jnp.tile(bias, 2)[None] for bias in (*biases[:-1], biases[-1] * gain)]
    arrays = *(weight.astype(x_BHWC.dtype) for weight in weights), *shifts
    precision = precision and jax.lax.Precision(precision)
    call = functools.partial(_call, precision=precision, interpret=interpret)
    rows = P(row_axes())
    run = on_each_device(call, (rows, *[P()] * len(arrays)), rows)
    return run(x_BHWC, *arrays)


def _pairs(x_BHWC) -> int:
    """Pairs of rows of a band: a divisor of those of the picture; 0 where none will do."""
    for pairs in _BAND[x_BHWC.dtype.itemsize]:
        if x_BHWC.shape[1] % (2 * pairs) == 0:
            return pairs
    return 0


def _on_row_pairs(kernel):
    """[3, 3, C, K] -> [4 C, 6 K], a kernel on pairs of rows.

    From four rows, those of a pair, the one below and the one above, to the two of the pair, by the
    column that is read: the one to the left of the result, its own, the one to the right.
    """
    above, same, below = kernel
    none = jnp.zeros_like(same)
    pairs = (same, above), (below, same), (none, below), (above, none)
    from_rows = jnp.stack([jnp.stack(pair, axis=2) for pair in pairs])
    return from_rows.transpose(0, 2, 1, 3, 4).reshape(4 * kernel.shape[2], -1)


def _call(x_BHWC, *arrays, precision, interpret):
    B, H, W, C = x_BHWC.shape
    pairs, hidden = _pairs(x_BHWC), arrays[3].shape[0]
    bands = H // (2 * pairs)

    def band(index):
        return pl.BlockSpec((1, 2 * pairs, W, C), lambda image, step: (image, index(step), 0, 0))

    def whole(array):
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    kept = [(2 * pairs, W, C), (pairs + 2, W, hidden), (2 * pairs - 1, W, hidden)]
    return pl.pallas_call(
        functools.partial(_kernel, pairs=pairs, bands=bands, precision=precision),
        grid=(B, bands + 1),
        interpret=interpret,
        in_specs=[band(lambda step: jnp.minimum(step, bands - 1)), *map(whole, arrays)],
        out_specs=band(lambda step: jnp.maximum(step - 1, 0)),
        out_shape=jax.ShapeDtypeStruct(x_BHWC.shape, x_BHWC.dtype),
        scratch_shapes=[pltpu.VMEM(shape, x_BHWC.dtype) for shape in kept],
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
        name='residual_block',
    )(x_BHWC, *arrays)


def _dot(a, b, precision):
    """The product in float32.

    Kernels know no HIGH: here it is the product of bfloat16 numbers and what they leave, but that
    of what both leave.
    """
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    if precision != jax.lax.Precision.HIGH:
        return dot(a, b, precision=precision)
    (a, a_rest), (b, b_rest) = map(_halves, (a, b))
    return dot(a, b) + (dot(a, b_rest) + dot(a_rest, b))


def _halves(x):
    rounded = x.astype(jnp.bfloat16)
    return rounded, (x - rounded.astype(x.dtype)).astype(jnp.bfloat16)


def _kernel(x, w1, w2, w3, w4, b1, b2, b3, b4, out, previous, y1, y2, *, pairs, bands, precision):
    """x, out, previous: a band; y1, y2: pairs of rows of hidden layers that later steps read."""
    step = pl.program_id(1)
    first, width, hidden = step * pairs, x.shape[2], w4.shape[0]

    def numbers(axis):
        iota = jax.lax.broadcasted_iota(jnp.int32, (pairs, width, hidden), axis)
        return iota.reshape(-1, hidden)

    def convolve(rows, weight, bias, first):
        """relu of a convolution, [P * W, 2 K], from pair `first` on: 0 outside of the picture."""
        read = _dot(rows, weight[...], precision)
        left, same, right = (read[:, i * hidden : (i + 1) * hidden] for i in range(3))
        column, pair = numbers(1), first + numbers(0)
        left = jnp.where(column == 0, 0, pltpu.roll(left, 1, 0))
        right = jnp.where(column == width - 1, 0, pltpu.roll(right, pairs * width - 1, 0))
        inside = (pair >= 0) & (pair < pairs * bands)
        return jnp.where(inside, jax.nn.relu(left + same + right + bias[...]), 0).astype(x.dtype)

    def around(kept):
        """Of each pair but the first and the last: its rows and those around them, [P * W, 4 K]."""
        above, same, below = (kept[i : i + pairs].reshape(-1, hidden) for i in range(3))
        return jnp.concatenate([same, jnp.where(numbers(2) < hidden // 2, below, above)], 1)

    rows = []
    for row in range(2 * pairs - 3, 2 * pairs):
        rows.append(jnp.where(step > 0, jax.nn.relu(previous[row]), 0))
    for row in range(2 * pairs):
        rows.append(jnp.where(step < bands, jax.nn.relu(x[0, row]), 0))
    each = lambda start: jnp.concatenate(rows[start : start + 2 * pairs : 2], 0)
    four_rows = jnp.concatenate([each(1), each(2), each(3), each(0)], 1)
    y1[2:] = convolve(four_rows, w1, b1, first - 1).reshape(pairs, width, hidden)
    y2[pairs - 1 :] = convolve(around(y1), w2, b2, first - 2).reshape(pairs, width, hidden)
    y = _dot(convolve(around(y2), w3, b3, first - pairs), w4[...], precision) + b4[...]
    for parity, added in enumerate(jnp.split(y, 2, axis=1)):
        for pair in range(pairs):
            row, here = 2 * pair + parity, added[pair * width : (pair + 1) * width]
            out[0, row] = (previous[row].astype(jnp.float32) + here).astype(out.dtype)
    y1[:2], y2[: pairs - 1], previous[...] = y1[pairs:], y2[pairs:], x[0]
