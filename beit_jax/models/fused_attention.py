"""Softmax attention with a bias on the logits as two Pallas kernels for a TPU.

The sequences are short, 197 tokens, so that the weights of a few heads fit on the chip: the kernels
never write them to memory, neither in the forward pass nor, recomputed, in the backward pass. Each
goes through its heads twice: first their products, which wait on the chip, and then what follows
them, so that the matrix units have the products of one head while another is weighted
(docs/benchmarks.md). Keys lie along rows and queries along columns, so that no product needs a
transposed N x N matrix and all reductions run over rows. Shape legend: B images, N tokens, H heads,
K width of a head, D = H * K.
"""

import functools
import itertools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from beit_jax.models.kernels import (
    columns_of,
    dot,
    largest_divisor,
    on_chip_memory,
    start_sums,
    tpu_hindrance,
)

_IMAGES = 8  # a step of a kernel, at most
_WORTH = 20 * 2**20  # bytes for them: with more it takes no less time, and longer to compile
_USUAL = 16 * 2**20  # bytes of the chip that a kernel has anyway
_MAX_TOKENS = 640  # above, the weights of a head do not fit on every chip
_MULTIPLE = 16  # rows of a tile of bfloat16: what the width of a head must be a multiple of


def attention_hindrance(tokens: int, width: int) -> str:
    """Why not, and what to do; '' where nothing hinders."""
    if why := tpu_hindrance():
        return why
    if width % _MULTIPLE:
        return (
            f'heads are {width} wide, no multiple of {_MULTIPLE}: change config.model.width or '
            'config.model.heads'
        )
    if tokens > _MAX_TOKENS:
        return (
            f'{tokens} tokens are more than {_MAX_TOKENS}: lower config.data.image_size or raise '
            'config.model.patch_size'
        )
    return ''


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
    kept = 1 if normalizers is None else 2  # products that wait for what follows them
    images, together, memory = _together(
        batch, heads, width // heads * dtype.itemsize, tokens, kept
    )
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
        scratch_shapes=[pltpu.VMEM((images * together, tokens, tokens), wide)] * kept,
        name=f'attention{kernel.__name__}',
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary'),
            vmem_limit_bytes=min(memory, on_chip_memory()) or None,
        ),
    )(query_bias_D[:, None], bias_HNN, *arrays, *normalizers)


def _together(batch: int, heads: int, column: int, tokens: int, kept: int) -> tuple[int, int, int]:
    """(images and heads that a step of a kernel takes, bytes of the chip that it takes for them).

    column: bytes of one token of a head; kept: how many matrices [N, N] of each head wait for what
    follows them, 1 or, in the backward pass, 2.
    """
    columns = columns_of(tokens)
    matrix = -(-tokens // 8) * 8 * columns * 4
    room = (on_chip_memory() or 2**30) * 4 // 5  # where it is interpreted, there is no limit
    biases = 2 * 2 * matrix  # that of a head and its gradient, there twice
    together = largest_divisor(heads, 2 if 2 * (biases + 2 * matrix) <= room else 1)
    # what is read and written, 4 or 8 arrays, is there twice
    image = kept * together * (matrix + 2 * 4 * column * columns)
    images = largest_divisor(
        batch, min(_IMAGES, max(1, min(room - together * biases, _WORTH) // image))
    )
    needed = together * biases + images * image
    return images, together, max(_USUAL, needed * 3 // 2)


def _each_head(images, heads, width):
    """(number, head, (image, the rows of the head)) for all heads of a block."""
    for number, (image, head) in enumerate(itertools.product(range(images), range(heads))):
        yield number, head, (image, slice(head * width, (head + 1) * width))


def _forward(query_bias, bias, q, k, v, read, normalizer, logits, *, images, heads):
    each = list(_each_head(images, heads, q.shape[1] // heads))
    for number, head, at in each:
        query = (q[at] + query_bias[at[1]]).astype(q.dtype)
        logits[number] = dot(k[at], query, 0, 0) + bias[head]
    for number, head, at in each:
        largest = jnp.max(logits[number], axis=0, keepdims=True)
        weights = jnp.exp(logits[number] - largest)
        total = jnp.sum(weights, axis=0, keepdims=True)
        mean = dot(v[at], weights.astype(v.dtype), 1, 0) / total
        read[at] = mean.astype(read.dtype)
        normalizer[at[0], 0, head : head + 1] = largest + jnp.log(total)


def _backward(*arrays, images, heads):
    query_bias, bias, q, k, v, read, d_read, normalizer, *results = arrays
    d_q, d_k, d_v, d_query, d_bias, logits, d_weights = results
    start_sums((d_query, d_bias))
    each = list(_each_head(images, heads, q.shape[1] // heads))
    biased_query = lambda at: (q[at] + query_bias[at[1]]).astype(q.dtype)
    for number, head, at in each:
        logits[number] = dot(k[at], biased_query(at), 0, 0) + bias[head]
        d_weights[number] = dot(v[at], d_read[at], 0, 0)
    for number, head, at in each:
        weights = jnp.exp(logits[number] - normalizer[at[0], 0, head : head + 1])
        # the mean of the weights' gradients under the weights is the product of the result with its
        # gradient
        product = d_read[at].astype(jnp.float32) * read[at].astype(jnp.float32)
        mean = jnp.sum(product, axis=0, keepdims=True)
        d_logits = weights * (d_weights[number] - mean)
        d_bias[head] += d_logits
        rounded = d_logits.astype(q.dtype)
        d_query_head = dot(k[at], rounded, 1, 0)
        d_query[at[1]] += d_query_head
        d_q[at] = d_query_head.astype(d_q.dtype)
        d_k[at] = dot(biased_query(at), rounded, 1, 1).astype(d_k.dtype)
        d_v[at] = dot(d_read[at], weights.astype(v.dtype), 1, 1).astype(d_v.dtype)
