"""Softmax attention with a bias on the logits: in plain JAX, for a TPU as Pallas kernels
(`fused_attention`) and for NVIDIA GPUs by cuDNN; `choose` says which. Shape legend: B images, N
tokens, H heads, K width of a head, D = H * K.
"""

import functools

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.errors import check
from beit_jax.models.fused_attention import attend_by_kernel, attention_hindrance
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
        'pallas': attention_hindrance(tokens, width),
        'cudnn': _cudnn_hindrance(jnp.dtype(dtype).name, width, biased),
    }
    if setting == 'auto':
        return next(one for one in ('pallas', 'cudnn', 'plain') if not hindrances[one])
    check(
        not hindrances[setting],
        f'config.model.attention={setting}: {hindrances[setting]}, or leave it auto.',
    )
    return setting


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
