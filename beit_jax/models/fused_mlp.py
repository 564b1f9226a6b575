"""The second half of a block, x + keep * MLP(LayerNorm(x)), as Pallas kernels for a TPU.

Left to itself the compiler makes passes over the memory for the norm, for GELU and for the sums
over tokens that are the gradients of biases and norm. Here what is between the two products of the
forward pass, and between those two of the backward pass that give the gradient of x, never leaves
the chip; the gradients of the kernels are products of what the backward pass writes, by XLA. What
is before GELU is kept for the backward pass, all else is computed anew from x. Shape legend: B
images, N tokens, D width, F hidden width.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from beit_jax.models.gelu import gelu_and_slope
from beit_jax.models.kernels import (
    choose_kernels,
    dot,
    kernel_hindrance,
    norm_units,
    on_images,
    room_hindrance,
    rows_of,
    run_on_images,
    start_sums,
    through_norm,
)

_COLUMNS = 1024  # of F at a time


def choose_mlp(setting: str, *, dtype, tokens: int, width: int, hidden: int) -> str:
    """'plain' or 'pallas': see `choose_kernels`.

    Args:
      setting: `config.model.mlp`.
      dtype: of the products.
      tokens, width, hidden: N, CLS among them, D and F.
    """
    hindrance = functools.partial(mlp_hindrance, dtype, tokens, width, hidden)
    return choose_kernels('mlp', setting, hindrance)


def mlp_hindrance(dtype, tokens: int, width: int, hidden: int) -> str:
    """Why the kernels cannot be taken, and what to do; '' where nothing hinders."""
    widths = {'config.model.width': width, 'config.model.hidden': hidden}
    if why := kernel_hindrance(dtype, widths):
        return why
    return room_hindrance(_room(tokens, width, hidden), f'{width} x {hidden}', tokens)


def _room(tokens: int, width: int, hidden: int) -> Callable[[int], int]:
    """Bytes on a chip -> images that fit there: what changes with them is there twice."""
    image = rows_of(tokens) * (12 * hidden + 20 * width + 13 * _COLUMNS)
    return lambda memory: max(0, memory - 4 * width * hidden) // image


def mlp_branch(
    x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps: float, interpret: bool = False
):
    """x + keep * (gelu(norm(x) w1 + b1) w2 + b2), [B, N, D].

    On one TPU or, by images, on the mesh in use; anywhere where it is interpreted. Products have
    the dtype of x; parameters are float32. keep_B has no gradient.
    """
    w1_DF, w2_FD = w1_DF.astype(x_BND.dtype), w2_FD.astype(x_BND.dtype)
    return _branch(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def _branch(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret):
    shared = scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D
    return _apply(x_BND, keep_B, shared, eps, interpret, saves=False)[0]


def _save(x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, eps, interpret):
    shared = scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D
    out_BND, hidden_BNF = _apply(x_BND, keep_B, shared, eps, interpret, saves=True)
    return out_BND, (x_BND, keep_B, hidden_BNF, scale_D, shift_D, w1_DF, w2_FD)


def _apply(x_BND, keep_B, shared, eps, interpret, saves):
    """([B, N, D], and what is before GELU, [B, N, F], where the kernel `saves` it)."""
    run = functools.partial(_run_forward, eps=eps, interpret=interpret, saves=saves)
    return on_images(run, 2, len(shared), 1 + saves)(x_BND, keep_B, *shared)


def _gradients(eps, interpret, saved, d_out_BND):
    x_BND, keep_B, hidden_BNF, *shared = saved
    run = functools.partial(_run_backward, eps=eps, interpret=interpret)
    found = on_images(run, 4, len(shared), 9)(x_BND, d_out_BND, keep_B, hidden_BNF, *shared)
    d_x_BND, normed_BND, d_hidden_BNF, active_BNF, d_branch_BND, *sums = found
    product = functools.partial(jnp.einsum, 'bnx,bny->xy')
    d_w1_DF, d_w2_FD = product(normed_BND, d_hidden_BNF), product(active_BNF, d_branch_BND)
    d_scale_D, d_shift_D, d_b1_F, d_b2_D = (jnp.sum(each, (0, 1)) for each in sums)
    d_keep_B = jnp.zeros_like(keep_B)
    return d_x_BND, d_keep_B, d_scale_D, d_shift_D, d_w1_DF, d_b1_F, d_w2_FD, d_b2_D


_branch.defvjp(_save, _gradients)


def _run_forward(
    x_BND, keep_B, scale_D, shift_D, w1_DF, b1_F, w2_FD, b2_D, *, eps, interpret, saves
):
    """What `_apply` gives."""
    shared = scale_D[None], shift_D[None], w1_DF, b1_F[None], w2_FD, b2_D[None]
    hidden = jax.ShapeDtypeStruct((*x_BND.shape[:2], w1_DF.shape[1]), x_BND.dtype)
    kernel = functools.partial(_forward, eps=eps)
    room = _room(*x_BND.shape[1:], w1_DF.shape[1])
    arrays, results = (x_BND, keep_B[:, None, None]), [x_BND, *[hidden] * saves]
    return run_on_images(
        kernel, arrays, shared, results, [], room=room, interpret=interpret, name='mlp_forward'
    )


def _run_backward(x_BND, d_out_BND, keep_B, hidden_BNF, *shared, eps, interpret):
    """(the gradient of x, what the gradients of the kernels are products of: [B, N, D or F], sums
    over tokens: [1 or 2, 1, D or F])."""
    scale_D, shift_D, w1_DF, w2_FD = shared
    width, hidden = w1_DF.shape
    arrays = x_BND, d_out_BND, keep_B[:, None, None], hidden_BNF
    shared = scale_D[None], shift_D[None], w1_DF, w2_FD
    results = x_BND, x_BND, hidden_BNF, hidden_BNF, x_BND
    sums = [(1, size) for size in (width, width, hidden, width)]
    kernel = functools.partial(_backward, eps=eps)
    room = _room(*x_BND.shape[1:], hidden)
    return run_on_images(
        kernel, arrays, shared, results, sums, room=room, interpret=interpret, name='mlp_backward'
    )


def _columns(width: int) -> list[slice]:
    return [slice(start, min(start + _COLUMNS, width)) for start in range(0, width, _COLUMNS)]


def _forward(x, keep, scale, shift, w1, b1, w2, b2, out, *saved, eps):
    for image in range(len(x)):
        wide = x[image].astype(jnp.float32)
        normed = (norm_units(wide, eps)[0] * scale[...] + shift[...]).astype(x.dtype)
        branch = b2[...]
        for columns in _columns(w1.shape[1]):
            before = dot(normed, w1[:, columns]) + b1[:, columns]
            for hidden in saved:
                hidden[image, :, columns] = before.astype(x.dtype)
            branch = branch + dot(gelu_and_slope(before)[0].astype(x.dtype), w2[columns])
        out[image] = (wide + branch * keep[image]).astype(x.dtype)


def _backward(x, d_out, keep, hidden, scale, shift, w1, w2, *results, eps):
    d_x, normed, d_hidden, active, d_branch, *sums = results
    d_scale, d_shift, d_b1, d_b2 = sums
    start_sums(sums)
    for image in range(len(x)):
        units, inverse = norm_units(x[image].astype(jnp.float32), eps)
        normed[image] = (units * scale[...] + shift[...]).astype(x.dtype)
        wide = d_out[image].astype(jnp.float32)
        gradient = wide * keep[image]
        d_b2[0] += jnp.sum(gradient, axis=0, keepdims=True)
        gradient = gradient.astype(x.dtype)
        d_branch[image] = gradient
        d_normed = 0
        for columns in _columns(hidden.shape[2]):
            after, slope = gelu_and_slope(hidden[image, :, columns].astype(jnp.float32))
            active[image, :, columns] = after.astype(x.dtype)
            d_before = dot(gradient, w2[columns], 1, 1) * slope
            d_b1[0, :, columns] += jnp.sum(d_before, axis=0, keepdims=True)
            d_before = d_before.astype(x.dtype)
            d_hidden[image, :, columns] = d_before
            d_normed = d_normed + dot(d_before, w1[:, columns], 1, 1)
        d_shift[0] += jnp.sum(d_normed, axis=0, keepdims=True)
        d_scale[0] += jnp.sum(d_normed * units, axis=0, keepdims=True)
        through = through_norm(d_normed, units, inverse, scale[...])
        d_x[image] = (wide + through).astype(x.dtype)
