"""What stands beside attention in a block, from the norm before it to the residual after it, as
Pallas kernels for a TPU.

They give and take a column for each token where attention's kernels do, so that nothing is
transposed in memory. What the norm gives never leaves the chip, and is computed anew for the
backward pass. The kernels of that one give the gradients of the parameters too, and add to the
gradient of x what reached it past attention. Shape legend: B images, N tokens, D width, E that of
all heads (D again).
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from beit_jax.models.fused_attention import attention_hindrance
from beit_jax.models.kernels import (
    choose_kernels,
    columns_of,
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


def choose_projections(
    setting: str, attention: str, heads: int, *, dtype, tokens: int, width: int
) -> str:
    """'plain' or 'pallas': see `choose_kernels`.

    Args:
      setting, attention: `config.model.projections` and `config.model.attention`.
      heads: that D is cut into.
      dtype: of the products.
      tokens, width: N, CLS among them, and D.
    """
    hindrance = functools.partial(projections_hindrance, attention, dtype, tokens, width, heads)
    return choose_kernels('projections', setting, hindrance)


def projections_hindrance(attention: str, dtype, tokens: int, width: int, heads: int) -> str:
    """Why the kernels cannot be taken, and what to do; '' where nothing hinders."""
    if why := kernel_hindrance(dtype, {'config.model.width': width}):
        return why
    if attention not in ('auto', 'pallas'):
        return f'config.model.attention is {attention}: set it to pallas'
    if why := attention_hindrance(tokens, width // heads):
        return why
    return room_hindrance(_room(tokens, width), f'{width} x {width}', tokens)


def _room(tokens: int, width: int) -> Callable[[int], int]:
    """Bytes on a chip -> images that fit in three quarters of it: the rest is for what is not
    counted. The parameters are there once and their gradients twice, what changes with the images
    twice; and a few intermediate results are."""
    columns = columns_of(tokens)
    image = 12 * width * (rows_of(tokens) + columns)
    once = 30 * width * width + 16 * width * columns
    return lambda memory: max(0, memory * 3 // 4 - once) // image


def queries_keys_values(x_BND, scale_D, shift_D, kernels, eps: float, interpret: bool = False):
    """(x, queries, keys, values): x as it is, whose gradient is to come this way, and
    norm(x) times each of three kernels [D, E], as [B, E, N].

    On one TPU or, by images, on the mesh in use; anywhere where it is interpreted. Products have
    the dtype of x; parameters are float32.
    """
    return _project(x_BND, scale_D, shift_D, tuple(kernels), eps, interpret)


def add_read(x_BND, read_BEN, keep_B, kernel_ED, bias_D, interpret: bool = False):
    """x + keep * (what tokens read of one another, by columns, times a kernel, + bias), [B, N, D].

    Likewise. keep_B has no gradient.
    """
    return _add(x_BND, read_BEN, keep_B, kernel_ED, bias_D, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _project(x_BND, scale_D, shift_D, kernels, eps, interpret):
    return _project_and_save(x_BND, scale_D, shift_D, kernels, eps, interpret)[0]


def _project_and_save(x_BND, scale_D, shift_D, kernels, eps, interpret):
    narrow = [kernel.astype(x_BND.dtype) for kernel in kernels]
    run = functools.partial(_run_project, eps=eps, interpret=interpret)
    projected = on_images(run, 1, 5, 3)(x_BND, scale_D, shift_D, *narrow)
    return (x_BND, *projected), (x_BND, scale_D, shift_D, *narrow)


def _project_gradients(eps, interpret, saved, gradients):
    x_BND, *shared = saved
    run = functools.partial(_run_project_back, eps=eps, interpret=interpret)
    d_x_BND, *sums = on_images(run, 5, 5, 6)(x_BND, *gradients, *shared)
    # of each core of each device
    d_scale, d_shift, *d_kernels = (jnp.sum(each, axis=0) for each in sums)
    return d_x_BND, d_scale[0], d_shift[0], tuple(d_kernels)


_project.defvjp(_project_and_save, _project_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _add(x_BND, read_BEN, keep_B, kernel_ED, bias_D, interpret):
    return _add_and_save(x_BND, read_BEN, keep_B, kernel_ED, bias_D, interpret)[0]


def _add_and_save(x_BND, read_BEN, keep_B, kernel_ED, bias_D, interpret):
    narrow_ED = kernel_ED.astype(x_BND.dtype)
    run = on_images(functools.partial(_run_add, interpret=interpret), 3, 2, 1)
    (sum_BND,) = run(x_BND, read_BEN, keep_B, narrow_ED, bias_D)
    return sum_BND, (read_BEN, keep_B, narrow_ED)


def _add_gradients(interpret, saved, d_sum_BND):
    run = on_images(functools.partial(_run_add_back, interpret=interpret), 3, 1, 3)
    d_read_BEN, d_kernel, d_bias = run(d_sum_BND, *saved)
    d_kernel_ED, d_bias_D = jnp.sum(d_kernel, axis=0), jnp.sum(d_bias, axis=(0, 1))
    return d_sum_BND, d_read_BEN, jnp.zeros_like(saved[1]), d_kernel_ED, d_bias_D


_add.defvjp(_add_and_save, _add_gradients)


def _run_project(x_BND, scale_D, shift_D, *kernels, eps, interpret):
    (batch, tokens, width), outputs = x_BND.shape, kernels[0].shape[1]
    shared = scale_D[None], shift_D[None], *(kernel.T for kernel in kernels)
    like = jax.ShapeDtypeStruct((batch, outputs, tokens), x_BND.dtype)
    return run_on_images(
        functools.partial(_project_kernel, eps=eps), [x_BND], shared, [like] * 3, [],
        room=_room(tokens, width), interpret=interpret, name='projections_forward',
    )  # fmt: skip


def _run_project_back(x_BND, *arrays, eps, interpret):
    """arrays: the gradients of what `queries_keys_values` gives, and what it takes besides x."""
    *gradients, scale_D, shift_D, w_q, w_k, w_v = arrays
    width, outputs = w_q.shape
    shared = scale_D[None], shift_D[None], w_q, w_k, w_v
    return run_on_images(
        functools.partial(_project_back_kernel, eps=eps), [x_BND, *gradients], shared, [x_BND],
        [(1, width)] * 2 + [(width, outputs)] * 3,
        room=_room(*x_BND.shape[1:]), interpret=interpret, name='projections_backward',
    )  # fmt: skip


def _run_add(x_BND, read_BEN, keep_B, kernel_ED, bias_D, *, interpret):
    arrays, shared = (x_BND, read_BEN, keep_B[:, None, None]), (kernel_ED, bias_D[None])
    return run_on_images(
        _add_kernel, arrays, shared, [x_BND], [],
        room=_room(*x_BND.shape[1:]), interpret=interpret, name='out_forward',
    )  # fmt: skip


def _run_add_back(d_sum_BND, read_BEN, keep_B, kernel_ED, *, interpret):
    arrays = d_sum_BND, read_BEN, keep_B[:, None, None]
    return run_on_images(
        _add_back_kernel, arrays, [kernel_ED], [read_BEN],
        [kernel_ED.shape, (1, kernel_ED.shape[1])],
        room=_room(*d_sum_BND.shape[1:]), interpret=interpret, name='out_backward',
    )  # fmt: skip


def _project_kernel(x, scale, shift, w_q, w_k, w_v, *results, eps):
    for image in range(len(x)):
        units, _ = norm_units(x[image].astype(jnp.float32), eps)
        normed = (units * scale[...] + shift[...]).astype(x.dtype)
        for kernel, result in zip((w_q, w_k, w_v), results):
            result[image] = dot(kernel[...], normed, 1, 1).astype(x.dtype)


def _project_back_kernel(x, d_past, d_q, d_k, d_v, scale, shift, w_q, w_k, w_v, d_x, *sums, eps):
    d_scale, d_shift, *d_kernels = sums
    start_sums(sums)
    for image in range(len(x)):
        units, inverse = norm_units(x[image].astype(jnp.float32), eps)
        normed_DN = (units * scale[...] + shift[...]).astype(x.dtype).T
        d_normed = 0
        for kernel, gradient, d_kernel in zip((w_q, w_k, w_v), (d_q, d_k, d_v), d_kernels):
            d_kernel[0] += dot(normed_DN, gradient[image], 1, 1)
            d_normed = d_normed + dot(kernel[...], gradient[image])
        d_normed = d_normed.T
        d_shift[0] += jnp.sum(d_normed, axis=0, keepdims=True)
        d_scale[0] += jnp.sum(d_normed * units, axis=0, keepdims=True)
        through = through_norm(d_normed, units, inverse, scale[...])
        d_x[image] = (d_past[image].astype(jnp.float32) + through).astype(x.dtype)


def _add_kernel(x, read, keep, kernel, bias, result):
    for image in range(len(x)):
        branch = dot(read[image], kernel[...], 0, 0) + bias[...]
        result[image] = (x[image].astype(jnp.float32) + branch * keep[image]).astype(x.dtype)


def _add_back_kernel(d_sum, read, keep, kernel, d_read, d_kernel, d_bias):
    start_sums((d_kernel, d_bias))
    for image in range(len(d_sum)):
        gradient = d_sum[image].astype(jnp.float32) * keep[image]
        d_bias[0] += jnp.sum(gradient, axis=0, keepdims=True)
        gradient = gradient.astype(d_sum.dtype)
        d_read[image] = dot(kernel[...], gradient, 1, 1).astype(d_sum.dtype)
        d_kernel[0] += dot(read[image], gradient)
