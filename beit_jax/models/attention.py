"""Softmax attention with a bias on the logits: in plain JAX, and for a TPU as two Pallas kernels.

`attend` chooses. The sequences are short, 197 tokens, so that the weights of a few heads fit on the
chip: the kernels never write them to memory, neither in the forward pass nor, recomputed, in the
backward pass. By the compiler's estimate they take a seventh of the time (docs/benchmarks.md). In
the kernels keys lie along rows and queries along columns, so that no product needs a transposed N x
N matrix and all reductions run over rows; they take and give [B, D, N]. Shape legend: B images, N
tokens, H heads, K width of a head, D = H * K.
"""

import functools
import itertools

import jax
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.models.platform import HEADS, by_rows, row_axes, target_platform

_IMAGES = 4  # a step of a kernel, at most
_MAX_TOKENS = 640  # above, the weights of two heads do not fit on the chip
_MULTIPLE = 16  # rows of a tile of bfloat16: what the width of a head must be a multiple of


def row_major(x):
    """`x` [B, ...], on a TPU in the layout that the kernels take.

    Left to itself, the compiler may lay tokens outermost, and copies then. By rows, for over
    several slices it would gather a constrained array whole.
    """
    if target_platform() != 'tpu':
        return x
    return by_rows(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), x)


def attend(q_BND, k_BND, v_BND, query_bias_D, bias_HNN):
    """What each token reads of the others: values, weighted by softmax(queries . keys + bias).

    Args:
      q_BND, k_BND, v_BND: queries (already divided by sqrt(K)), keys and values, of one dtype.
      query_bias_D: float32, added to the queries.
      bias_HNN: float32 [H, N, N] (key, query), added to the logits.

    Returns:
      [B, N, D], of the same dtype; logits and softmax are float32.
    """
    _, tokens, width = q_BND.shape
    fits = tokens <= _MAX_TOKENS and width // len(bias_HNN) % _MULTIPLE == 0
    if target_platform() != 'tpu' or not fits:
        return attend_plain(q_BND, k_BND, v_BND, query_bias_D, bias_HNN)
    columns = [x.swapaxes(1, 2) for x in (q_BND, k_BND, v_BND)]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend_by_kernel(*columns, query_bias_D, bias_HNN).swapaxes(1, 2)
    rows = P(row_axes(), HEADS)
    on_mesh = jax.shard_map(
        attend_by_kernel,
        mesh=mesh,
        in_specs=(rows, rows, rows, P(HEADS), P(HEADS)),
        out_specs=rows,
        check_vma=False,  # the kernels do not say over which axes their results differ
    )
    return on_mesh(*columns, query_bias_D, bias_HNN).swapaxes(1, 2)


def attend_plain(q_BND, k_BND, v_BND, query_bias_D, bias_HNN):
    """`attend` on any device."""
    weights_BHNN = weights(q_BND, k_BND, query_bias_D, bias_HNN).astype(v_BND.dtype)
    return (weights_BHNN @ _split(v_BND, len(bias_HNN))).swapaxes(1, 2).reshape(q_BND.shape)


def weights(q_BND, k_BND, query_bias_D, bias_HNN):
    """How much each token looks at each other one, float32 [B, H, N, N] (query, key).

    Rows sum to 1.
    """
    q_BND = q_BND + query_bias_D.astype(q_BND.dtype)
    q_BHNK, k_BHNK = (_split(x_BND, len(bias_HNN)) for x_BND in (q_BND, k_BND))
    logits_BHNN = jnp.einsum('bhqk,bhsk->bhqs', q_BHNK, k_BHNK, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits_BHNN + bias_HNN.swapaxes(1, 2), axis=3)


def _split(x_BND, heads: int):
    """[B, N, D] -> [B, H, N, K]."""
    return x_BND.reshape(*x_BND.shape[:2], heads, -1).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_by_kernel(q_BDN, k_BDN, v_BDN, query_bias_D, bias_HNN, interpret: bool = False):
    """`attend` with a column for each token: on one TPU, or anywhere where it is interpreted."""
    return _save(q_BDN, k_BDN, v_BDN, query_bias_D, bias_HNN, interpret)[0]


def _save(q_BDN, k_BDN, v_BDN, query_bias_D, bias_HNN, interpret):
    arrays = q_BDN, k_BDN, v_BDN
    read_BDN, normalizers = _call(_forward, query_bias_D, bias_HNN, arrays, interpret)
    return read_BDN, (q_BDN, k_BDN, v_BDN, query_bias_D, bias_HNN, read_BDN, normalizers)


def _gradients(interpret, saved, d_read_BDN):
    q_BDN, k_BDN, v_BDN, query_bias_D, bias_HNN, read_BDN, normalizers = saved
    arrays = q_BDN, k_BDN, v_BDN, read_BDN, d_read_BDN
    gradients = _call(_backward, query_bias_D, bias_HNN, arrays, interpret, normalizers)
    *d_arrays, d_query_DN, d_bias_HNN = gradients
    return *d_arrays, jnp.sum(d_query_DN, axis=1), d_bias_HNN


attend_by_kernel.defvjp(_save, _gradients)


def _call(kernel, query_bias_D, bias_HNN, arrays, interpret, normalizers=None):
    """Runs a kernel on blocks of a few heads of a few images.

    Images change first, so that sums over them stay on the chip. `normalizers`: of the forward
    pass, for the backward one.
    """
    (batch, width, tokens), heads, dtype = arrays[0].shape, len(bias_HNN), arrays[0].dtype
    images, together = _divisor(batch, _IMAGES), _divisor(heads, 2)
    rows = together * width // heads
    block = pl.BlockSpec((images, rows, tokens), lambda head, image: (image, head, 0))
    row = pl.BlockSpec((images, 1, together, tokens), lambda head, image: (image, head, 0, 0))
    bias_block = pl.BlockSpec((together, tokens, tokens), lambda head, image: (head, 0, 0))
    column = pl.BlockSpec((rows, 1), lambda head, image: (head, 0))
    sums = pl.BlockSpec((rows, tokens), lambda head, image: (head, 0))
    result, wide = (block, arrays[0].shape, dtype), jnp.float32
    if normalizers is None:
        results = [result, (row, (batch, heads // together, together, tokens), wide)]
        normalizers = []
    else:
        results = [result, result, result]
        results += [(sums, (width, tokens), wide), (bias_block, bias_HNN.shape, wide)]
        normalizers = [normalizers]
    return pl.pallas_call(
        functools.partial(kernel, images=images, heads=together),
        grid=(heads // together, batch // images),
        interpret=interpret,
        in_specs=[column, bias_block] + [block] * len(arrays) + [row] * len(normalizers),
        out_specs=[spec for spec, *_ in results],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in results],
        name=f'attention{kernel.__name__}',
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    )(query_bias_D[:, None], bias_HNN, *arrays, *normalizers)


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def _each_head(images, heads, width):
    """(image, head, the rows of the head) for all heads of a block."""
    for image, head in itertools.product(range(images), range(heads)):
        yield image, head, slice(head * width, (head + 1) * width)


def _dot(a, b, contract_a: int, contract_b: int):
    axes = ((contract_a,), (contract_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _forward(query_bias, bias, q, k, v, read, normalizer, *, images, heads):
    for image, head, rows in _each_head(images, heads, q.shape[1] // heads):
        query = (q[image, rows] + query_bias[rows]).astype(q.dtype)
        logits = _dot(k[image, rows], query, 0, 0) + bias[head]
        largest = jnp.max(logits, axis=0, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=0, keepdims=True)
        mean = _dot(v[image, rows], weights.astype(v.dtype), 1, 0) / total
        read[image, rows] = mean.astype(read.dtype)
        normalizer[image, 0, head : head + 1] = largest + jnp.log(total)


def _backward(*arrays, images, heads):
    query_bias, bias, q, k, v, read, d_read, normalizer, *gradients = arrays
    d_q, d_k, d_v, d_query, d_bias = gradients

    @pl.when(pl.program_id(1) == 0)
    def _():
        d_query[...] = jnp.zeros_like(d_query)
        d_bias[...] = jnp.zeros_like(d_bias)

    for image, head, rows in _each_head(images, heads, q.shape[1] // heads):
        at = image, rows
        query, key, gradient = (q[at] + query_bias[rows]).astype(q.dtype), k[at], d_read[at]
        logits = _dot(key, query, 0, 0) + bias[head]
        weights = jnp.exp(logits - normalizer[image, 0, head : head + 1])
        # the mean of the weights' gradients under the weights is the product of the result with its
        # gradient
        product = gradient.astype(jnp.float32) * read[at].astype(jnp.float32)
        mean = jnp.sum(product, axis=0, keepdims=True)
        d_logits = weights * (_dot(v[at], gradient, 0, 0) - mean)
        d_bias[head] += d_logits
        rounded = d_logits.astype(q.dtype)
        d_query_head = _dot(key, rounded, 1, 0)
        d_query[rows] += d_query_head
        d_q[at] = d_query_head.astype(d_q.dtype)
        d_k[at] = _dot(query, rounded, 1, 1).astype(d_k.dtype)
        d_v[at] = _dot(gradient, weights.astype(v.dtype), 1, 1).astype(d_v.dtype)
