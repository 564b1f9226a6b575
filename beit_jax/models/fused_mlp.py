"""The second half of a block, x + keep * MLP(LayerNorm(x)), as Pallas kernels for a TPU.

Left to itself the compiler makes passes over the memory for the norm, for GELU and for the sums
over tokens that are the gradients of biases and norm. Here what is between the two products of the
forward pass, and between those two of the backward pass that give the gradient of x, never leaves
the chip; the gradients of the kernels are products of what the backward pass writes, by XLA. What
is before GELU is kept for the backward pass, all else is computed anew from x. Rows are tokens, the
first one of all images first, so that none is empty. Shape legend: B images, N tokens, R rows, D
width, F hidden width.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.errors import check
from beit_jax.machines.peaks import chip_of
from beit_jax.machines.tpus import CHIPS
from beit_jax.models.gelu import gelu_and_slope
from beit_jax.models.platform import (
    HEADS,
    NONE,
    on_each_device,
    row_axes,
    target_kind,
    target_platform,
)

# chips on which a whole step takes less with them, by the compiler's estimate (docs/benchmarks.md)
FASTER_ON = (CHIPS['v6e'],)
MLP_WAYS = ('auto', 'plain', 'pallas')
_LANES = 128  # what D and F must be multiples of
_TILE = 16  # rows of bfloat16
_MOST, _LEAST = 800, 256  # rows at a time
_COLUMNS = 1024  # of F at a time


def choose_mlp(setting: str, *, dtype, width: int, hidden: int) -> str:
    """How it is computed on the devices that are traced for: 'plain' (in JAX) or 'pallas'.

    Args:
      setting: of MLP_WAYS, `config.model.mlp`; 'auto': the kernels where they can be taken, on
        FASTER_ON.
      dtype: of the products.
      width, hidden: D and F.

    Raises:
      RequestError: a setting that cannot be taken here.
    """
    if setting == 'plain' or target_platform() == NONE or (setting == 'auto' and not is_faster()):
        return 'plain'
    hindrance = mlp_hindrance(dtype, width, hidden)
    check(
        setting == 'auto' or not hindrance,
        f'config.model.mlp={setting}: {hindrance}, or leave it auto.',
    )
    return 'plain' if hindrance else 'pallas'


def is_faster() -> bool:
    """Whether the devices that are traced for are FASTER_ON."""
    return chip_of(target_kind()) in FASTER_ON


def mlp_hindrance(dtype, width: int, hidden: int) -> str:
    """Why the kernels cannot be taken, and what to do; '' where nothing hinders."""
    kind, name = target_kind(), jnp.dtype(dtype).name
    if target_platform() != 'tpu':
        return f'these kernels are for TPUs, this is a {target_platform()}: run it on one'
    if name != 'bfloat16':
        return f'they do not take {name}: set config.compute_dtype=bfloat16'
    if width % _LANES or hidden % _LANES:
        return (
            f'{width} and {hidden} are not both multiples of {_LANES}: change config.model.width '
            'or config.model.hidden'
        )
    if jax.sharding.get_abstract_mesh().shape.get(HEADS, 1) > 1:
        return 'each device is to have all of the MLP: set config.mesh.tensor=1'
    if _room(width, hidden) < _LEAST:
        return (
            f'the parameters of {width} x {hidden} do not fit on the chip of a {kind}: run it on a '
            'v5e, v5p or v6e'
        )
    return ''


def _memory() -> int:
    """Bytes on the chip that kernels may take, of the devices that are traced for; 0 where that is
    not known."""
    chip = chip_of(target_kind())
    return chip.on_chip * 19 // 20 if chip else 0


def _room(width: int, hidden: int) -> int:
    """Rows that fit on the chip. The sum is what the compiler was seen to take for the backward
    pass, where arrays that change come twice."""
    row = 12 * hidden + 20 * width + 13 * _COLUMNS
    return max(0, _memory() - 4 * width * hidden) // row


def _rows(total: int, width: int, hidden: int) -> int:
    """At a time: such that few are empty at the end, and two cores have as many."""
    most = min(_MOST, _room(width, hidden)) or _MOST  # where it is interpreted, there is no limit
    if total <= most:
        return -(-total // _TILE) * _TILE
    taken = lambda rows: -(-total // (2 * rows)) * 2 * rows
    return min(range(most // _TILE * _TILE, _LEAST - 1, -_TILE), key=taken)


def mlp_branch(
    x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps: float, interpret: bool = False
):
    """x + keep * (gelu(norm(x) w1 + b1) w2 + b2), [B, N, D].

    On one TPU or, by rows, on the mesh in use; anywhere where it is interpreted. Products have the
    dtype of x; parameters are float32. keep_B has no gradient.
    """
    w1_DF, w2_FD = w1_DF.astype(x_BND.dtype), w2_FD.astype(x_BND.dtype)
    return _branch(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def _branch(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret):
    shared = scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D
    return _apply(x_BND, keep_B, shared, eps, interpret, saves=False)[0]


def _save(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret):
    shared = scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D
    out_BND, hidden_NBF = _apply(x_BND, keep_B, shared, eps, interpret, saves=True)
    return out_BND, (x_BND, keep_B, hidden_NBF, scale_D, shift_D, w1_DF, w2_FD)


def _apply(x_BND, keep_B, shared, eps, interpret, saves):
    """[[B, N, D], and what is before GELU, [N, B, F], where the kernel `saves` it]."""
    run = functools.partial(_run_forward, eps=eps, interpret=interpret, saves=saves)
    batch, places = P(row_axes()), P(None, row_axes())
    specs = batch, batch, *[P()] * len(shared)
    results = [batch, places] if saves else [batch]
    return on_each_device(run, specs, results)(x_BND, keep_B, *shared)


def _gradients(eps, interpret, saved, d_out_BND):
    x_BND, keep_B, hidden_NBF, *shared = saved
    run = functools.partial(_run_backward, eps=eps, interpret=interpret)
    batch, places = P(row_axes()), P(None, row_axes())
    specs = batch, batch, batch, places, *[P()] * len(shared)
    run = on_each_device(run, specs, (batch, places, batch))
    d_x_BND, rows, sums = run(x_BND, d_out_BND, keep_B, hidden_NBF, *shared)
    normed_NBD, d_hidden_NBF, active_NBF, d_branch_NBD = rows
    product = functools.partial(jnp.einsum, 'nbx,nby->xy')
    d_w1_DF, d_w2_FD = product(normed_NBD, d_hidden_NBF), product(active_NBF, d_branch_NBD)
    d_scale_D, d_shift_D, d_b1_F, d_b2_D = (jnp.sum(each, (0, 1)) for each in sums)
    d_keep_B = jnp.zeros_like(keep_B)
    return d_x_BND, d_keep_B, d_scale_D, d_shift_D, d_w1_DF, d_b1_F, d_w2_FD, d_b2_D


_branch.defvjp(_save, _gradients)


def _by_rows(x_BND):
    return x_BND.swapaxes(0, 1).reshape(-1, x_BND.shape[2])


def _run_forward(
    x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, *, eps, interpret, saves
):
    """What `_apply` gives."""
    batch, tokens, width = x_BND.shape
    hidden = w1_DF.shape[1]
    arrays = _by_rows(x_BND), jnp.tile(keep_B, tokens)[:, None]
    shared = scale_D[None], shift_D[None], w1_DF, b1_F[None], w2_FD, b2_D[None]
    widths = [width, *[hidden] * saves]
    results = _call(_forward, 'mlp_forward', arrays, shared, widths, [], eps, interpret)
    out_NBD, *saved = (each.reshape(tokens, batch, -1) for each in results)
    return [out_NBD.swapaxes(0, 1), *saved]


def _run_backward(
    x_BND, d_out_BND, keep_B, hidden_NBF, scale_D, shift_D, w1_DF, w2_FD, *, eps, interpret
):
    """(the gradient of x, what the gradients of the kernels are products of: [N, B, D or F], sums
    over tokens: [1 or 2, 1, D or F])."""
    batch, tokens, width = x_BND.shape
    hidden = hidden_NBF.shape[2]
    arrays = _by_rows(x_BND), _by_rows(d_out_BND), jnp.tile(keep_B, tokens)[:, None]
    arrays = *arrays, hidden_NBF.reshape(-1, hidden)
    shared = scale_D[None], shift_D[None], w1_DF, w2_FD
    widths, sums = (width, width, hidden, hidden, width), (width, width, hidden, width)
    results = _call(_backward, 'mlp_backward', arrays, shared, widths, sums, eps, interpret)
    d_x_NBD, *rows = (each.reshape(tokens, batch, -1) for each in results[:5])
    return d_x_NBD.swapaxes(0, 1), rows, results[5:]


def _call(kernel, name, arrays, shared, widths, sums, eps, interpret):
    """Runs a kernel on some rows at a time.

    arrays: [R, ...]; shared: whole for each; widths: of the results [R, ...] and of sums over rows.
    """
    x = arrays[0]
    total, (width, hidden) = len(x), shared[2].shape
    rows = _rows(total, width, hidden)
    steps = -(-total // rows)
    cores = 2 if steps % 2 == 0 else 1
    block = lambda width: pl.BlockSpec((rows, width), lambda i, j: (i * (steps // cores) + j, 0))
    # once, for it never changes
    once = {'pipeline_mode': pl.Buffered(1)}
    whole = lambda array: pl.BlockSpec(array.shape, lambda i, j: (0, 0), **once)
    in_sum = lambda width: pl.BlockSpec((1, 1, width), lambda i, j: (i, 0, 0))
    like = jax.ShapeDtypeStruct
    return pl.pallas_call(
        functools.partial(kernel, left=total if total % rows else None, eps=eps),
        grid=(cores, steps // cores),
        interpret=interpret,
        in_specs=[*(block(array.shape[1]) for array in arrays), *map(whole, shared)],
        out_specs=[*map(block, widths), *map(in_sum, sums)],
        out_shape=[
            *(like((total, width), x.dtype) for width in widths),
            *(like((cores, 1, width), jnp.float32) for width in sums),
        ],
        name=name,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=_memory() or None
        ),
    )(*arrays, *shared)


def _dot(a, b, contract_b: int = 0):
    axes = ((1,), (contract_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _columns(width: int) -> list[slice]:
    return [slice(start, min(start + _COLUMNS, width)) for start in range(0, width, _COLUMNS)]


def _units(x, eps):
    """What LayerNorm multiplies by its scale, float32 [R, D], and what it multiplied by: [R, 1]."""
    mean = jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axis=1, keepdims=True) - mean * mean, 0)
    inverse = jax.lax.rsqrt(variance + eps)
    return (x - mean) * inverse, inverse


def _forward(x, keep, scale, shift, w1, b1, w2, b2, out, *saved, left, eps):
    wide = x[...].astype(jnp.float32)
    normed = (_units(wide, eps)[0] * scale[...] + shift[...]).astype(x.dtype)
    branch = b2[...]
    for columns in _columns(w1.shape[1]):
        before = _dot(normed, w1[:, columns]) + b1[:, columns]
        for hidden in saved:
            hidden[:, columns] = before.astype(x.dtype)
        branch = branch + _dot(gelu_and_slope(before)[0].astype(x.dtype), w2[columns])
    out[...] = (wide + branch * keep[...]).astype(x.dtype)


def _backward(*arrays, left, eps):
    x, d_out, keep, hidden, scale, shift, w1, w2, *results = arrays
    d_x, normed, d_hidden, active, d_branch, *sums = results
    d_scale, d_shift, d_b1, d_b2 = sums
    step, dtype = pl.program_id(1), x.dtype

    @pl.when(step == 0)
    def _():
        for each in sums:
            each[...] = jnp.zeros_like(each)

    def there(rows):
        """float32; 0 in rows behind the last one, which hold anything."""
        rows = rows.astype(jnp.float32)
        if left is None:
            return rows
        first = (pl.program_id(0) * pl.num_programs(1) + step) * len(rows)
        number = first + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return jnp.where(number < left, rows, 0)

    units, inverse = _units(there(x[...]), eps)
    normed[...] = (units * scale[...] + shift[...]).astype(dtype)
    wide = there(d_out[...])
    gradient = wide * there(keep[...])
    d_b2[0] += jnp.sum(gradient, axis=0, keepdims=True)
    gradient = gradient.astype(dtype)
    d_branch[...] = gradient
    d_normed = 0
    for columns in _columns(hidden.shape[1]):
        after, slope = gelu_and_slope(there(hidden[:, columns]))
        active[:, columns] = after.astype(dtype)
        d_before = _dot(gradient, w2[columns], 1) * slope
        d_b1[0, :, columns] += jnp.sum(d_before, axis=0, keepdims=True)
        d_before = d_before.astype(dtype)
        d_hidden[:, columns] = d_before
        d_normed = d_normed + _dot(d_before, w1[:, columns], 1)
    d_shift[0] += jnp.sum(d_normed, axis=0, keepdims=True)
    d_scale[0] += jnp.sum(d_normed * units, axis=0, keepdims=True)
    d_units = d_normed * scale[...]
    mean = lambda array: jnp.mean(array, axis=1, keepdims=True)
    through = (d_units - mean(d_units) - units * mean(d_units * units)) * inverse
    d_x[...] = (wide + through).astype(dtype)
