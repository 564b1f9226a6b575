"""Softmax attention with a bias on the logits: in plain JAX, for a TPU as two Pallas kernels and
for NVIDIA GPUs by cuDNN.

`choose` says which. The sequences are short, 197 tokens, so that the weights of a few heads fit on
the chip: the kernels never write them to memory, neither in the forward pass nor, recomputed, in
the backward pass. By the compiler's estimate they take a seventh of the time (docs/benchmarks.md).
In the Pallas kernels keys lie along rows and queries along columns, so that no product needs a
transposed N x N matrix and all reductions run over rows; they take and give [B, D, N]. Shape
legend: B images, N tokens, H heads, K width of a head, D = H * K.
"""

import functools
import itertools

import jax
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.errors import check
from beit_jax.models.platform import (
    HEADS,
    NONE,
    by_rows,
    cudnn_hindrance,
    on_each_device,
    row_axes,
    target_platform,
)
from beit_jax.runtime import is_deterministic

WAYS = ('auto', 'plain', 'cudnn', 'pallas')
_HIDDEN = -3e4  # on the logit of a key that is none: its weight is 0; -inf makes NaN of some rows
_IMAGES = 4  # a step of a Pallas kernel, at most
_MAX_TOKENS = 640  # above, the weights of two heads do not fit on the chip
_MULTIPLE = 16  # rows of a tile of bfloat16: what the width of a head must be a multiple of
_CUDNN_DTYPES = ('bfloat16', 'float16')
_CUDNN_MULTIPLE, _CUDNN_WIDTH = 8, 128  # of a head; wider ones cuDNN does not train on every GPU


def choose(setting: str, *, dtype, tokens: int, width: int, biased: bool) -> str:
    """How attention is computed on the devices that are traced for: 'plain', 'cudnn' or 'pallas'.

    Args:
      setting: of WAYS, `config.model.attention`; 'auto': the fastest that can be taken.
      dtype: of queries, keys and values.
      tokens: N, CLS among them.
      width: of a head.
      biased: whether there is a bias on the logits.

    Raises:
      RequestError: a setting that cannot be taken here.
    """
    if target_platform() == NONE:
        return 'plain'
    hindrances = {
        'plain': '',
        'pallas': pallas_hindrance(tokens, width),
        'cudnn': _cudnn_hindrance(jnp.dtype(dtype).name, width, biased),
    }
    if setting == 'auto':
        return next(one for one in ('pallas', 'cudnn', 'plain') if not hindrances[one])
    check(
        not hindrances[setting],
        f'config.model.attention={setting}: {hindrances[setting]}, or leave it auto.',
    )
    return setting


def pallas_hindrance(tokens: int, width: int) -> str:
    """Why not, and what to do; '' where nothing hinders."""
    if target_platform() != 'tpu':
        return f'these kernels are for TPUs, this is a {target_platform()}: run it on one'
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


def _cudnn_hindrance(dtype: str, width: int, biased: bool) -> str:
    """Likewise."""
    if hindrance := cudnn_hindrance():
        return hindrance
    if dtype not in _CUDNN_DTYPES:
        return f'cuDNN does not take {dtype}: set config.compute_dtype=bfloat16'
    if width % _CUDNN_MULTIPLE or width > _CUDNN_WIDTH:
        return (
            f'heads are {width} wide, cuDNN takes multiples of {_CUDNN_MULTIPLE} up to '
            f'{_CUDNN_WIDTH}: change config.model.width or config.model.heads'
        )
    if biased and is_deterministic():
        return (
            "the gradient of cuDNN's bias is not the same each time: set config.deterministic=false"
        )
    return ''


def padded_tokens(way: str, tokens: int) -> int:
    """How many tokens a sequence is to be filled up to: cuDNN gives gradients for an even number
    alone."""
    return tokens + tokens % 2 if way == 'cudnn' else tokens


def hide_padding(bias_HNN, tokens: int):
    """The bias of a sequence that is filled up to `tokens`: nobody looks at what is added."""
    more = tokens - bias_HNN.shape[1]
    if not more:
        return bias_HNN
    bias_HNN = jnp.pad(bias_HNN, ((0, 0), (0, more), (0, 0)), constant_values=_HIDDEN)
    return jnp.pad(bias_HNN, ((0, 0), (0, 0), (0, more)))


def row_major(x):
    """`x` [B, ...], on a TPU or GPU in the layout that the kernels take.

    Left to itself, the compiler may lay tokens outermost or images innermost, and copies then. By
    rows, for over several slices it would gather a constrained array whole.
    """
    if target_platform() == 'cpu':
        return x
    return by_rows(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), x)


def attend(q_BND, k_BND, v_BND, query_bias_D, bias_HNN, heads: int, setting: str = 'auto'):
    """What each token reads of the others: values, weighted by softmax(queries . keys + bias).

    Args:
      q_BND, k_BND, v_BND: queries (already divided by sqrt(K)), keys and values, of one dtype.
      query_bias_D: float32, added to the queries.
      bias_HNN: float32 [H, N, N] (key, query), added to the logits, or None.
      heads: H.
      setting: see `choose`.

    Returns:
      [B, N, D], of the same dtype; logits and softmax are float32.
    """
    _, tokens, width = q_BND.shape
    biased, width = bias_HNN is not None, width // heads
    way = choose(setting, dtype=q_BND.dtype, tokens=tokens, width=width, biased=biased)
    if way == 'cudnn':
        by_cudnn = functools.partial(attend_by_cudnn, width=width)
        wide, rows = P(row_axes(), None, HEADS), (q_BND, k_BND, v_BND)
        if not biased:
            by_cudnn = functools.partial(by_cudnn, bias_HNN=None)
            return _on_mesh(by_cudnn, wide)(*rows, query_bias_D)
        return _on_mesh(by_cudnn, wide, P(HEADS))(*rows, query_bias_D, bias_HNN)
    if not biased:
        bias_HNN = jnp.zeros((heads, tokens, tokens))
    if way == 'plain':
        return attend_plain(q_BND, k_BND, v_BND, query_bias_D, bias_HNN)
    columns = [x.swapaxes(1, 2) for x in (q_BND, k_BND, v_BND)]
    by_kernel = _on_mesh(attend_by_kernel, P(row_axes(), HEADS), P(HEADS))
    return by_kernel(*columns, query_bias_D, bias_HNN).swapaxes(1, 2)


def _on_mesh(kernel, rows, *of_heads):
    """A kernel on the devices of the mesh in use, each with its images and heads.

    rows: how queries, keys, values and the result lie; of_heads: how the biases after that of the
    queries do.
    """
    return on_each_device(kernel, (rows, rows, rows, P(HEADS), *of_heads), rows)


def attend_by_cudnn(q_BND, k_BND, v_BND, query_bias_D, bias_HNN, *, width: int):
    """`attend` on one NVIDIA GPU; for gradients N is even. `width`: of a head."""
    q_BND = q_BND + query_bias_D.astype(q_BND.dtype)
    split = lambda x_BND: x_BND.reshape(*x_BND.shape[:2], -1, width)
    if bias_HNN is not None:
        # of the dtype of the queries: with another one XLA made NaN of the gradient (JAX's issue
        # 32242)
        bias_HNN = bias_HNN.swapaxes(1, 2).astype(q_BND.dtype)[None]
    read_BNHK = jax.nn.dot_product_attention(
        split(q_BND), split(k_BND), split(v_BND), bias_HNN, scale=1.0, implementation='cudnn'
    )
    return read_BNHK.reshape(q_BND.shape)


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
