"""Layers of the vision transformer: attention with a relative position bias, MLP, block.

Shape legend: B images, N tokens (CLS first), D width, H heads, K width of a head, F hidden width of
the MLP. Parameters are float32; `dtype` is that of the products and of the residual stream. Norms
and softmax have float32 statistics.
"""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.models.attention import attend, hide_padding, row_major, weights
from beit_jax.models.fused_mlp import choose_mlp, mlp_branch
from beit_jax.models.fused_projections import add_read, choose_projections, queries_keys_values
from beit_jax.models.gelu import gelu, quick_gelu
from beit_jax.models.initializers import Constant, Divided, TruncatedNormal, parameter
from beit_jax.models.platform import keep_rows, target_platform


def linear(
    inputs: int,
    outputs: int,
    kernel_init,
    *,
    bias_init=Constant(0.0),
    dtype,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={'initializer': kernel_init},
        bias_metadata={'initializer': bias_init},
        dot_general=lambda x, kernel, *_, **options: product(x, kernel, **options),
    )


def product(x, kernel_DE, **options):
    """[..., D] and a kernel [D, E] -> [..., E].

    Elsewhere than on a TPU, whose tiles it would break, as a product of two matrices: XLA's CPU
    backend would else transpose the gradient of every result, at a third of the time of the MLP
    (docs/benchmarks.md).
    """
    rows = x if target_platform() == 'tpu' else x.reshape(-1, x.shape[-1])
    return jnp.matmul(rows, kernel_DE, **options).reshape(*x.shape[:-1], -1)


def layer_norm(width: int, eps: float, *, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics over the last axis; the result has `dtype`."""
    ones, zeros = Constant(1.0), Constant(0.0)
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        use_fast_variance=True,
        scale_init=ones,
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
        scale_metadata={'initializer': ones},
        bias_metadata={'initializer': zeros},
    )


@functools.lru_cache(maxsize=16)
def relative_position_index(grid: tuple[int, int]) -> np.ndarray:
    """Row of the bias table for each pair (query, key), int32 [N, N], N = 1 + h * w.

    The first (2h - 1)(2w - 1) rows are offsets between patches; the last three are CLS to patch,
    patch to CLS, CLS to CLS (modeling_finetune.py, RelativePositionBias).
    """
    height, width = grid
    y, x = np.indices(grid).reshape(2, -1)
    offsets = (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
    rows = num_relative_positions(grid)
    index = np.full((1 + height * width,) * 2, rows - 1, np.int32)
    index[1:, 1:], index[0, 1:], index[1:, 0] = offsets, rows - 3, rows - 2
    return index


def num_relative_positions(grid: tuple[int, int]) -> int:
    """Rows of the bias table."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativePositionBias(nnx.Module):
    """A learned bias for each offset between two tokens and each head."""

    def __init__(self, grid: tuple[int, int], heads: int, *, rngs: nnx.Rngs):
        self.grid = grid
        self.table = parameter(Constant(0.0), (num_relative_positions(grid), heads), rngs)

    def __call__(self, tokens: int) -> jax.Array:
        """float32 [H, N, N] (key, query), added to the attention logits.

        tokens: N, those of the grid or more.
        """
        bias_HNN = self.table[...][relative_position_index(self.grid).T].transpose(2, 0, 1)
        return hide_padding(bias_HNN, tokens)


class Attention(nnx.Module):
    """Multi-head self-attention (modeling_finetune.py, Attention); key alone has no bias."""

    def __init__(
        self,
        width: int,
        heads: int,
        kernel_init,
        out_init,
        *,
        grid: tuple[int, int] | None,
        qkv_bias: bool,
        way: str,
        dtype,
        rngs: nnx.Rngs,
    ):
        """`grid`: rows and columns of patches if the layer has a bias table of its own; `qkv_bias`:
        whether queries and values have biases; `way`: see `attend`."""
        self.heads, self.way, biased = heads, way, {'use_bias': qkv_bias}
        self.query = linear(width, width, kernel_init, dtype=dtype, rngs=rngs, **biased)
        self.key = linear(width, width, kernel_init, dtype=dtype, rngs=rngs, use_bias=False)
        self.value = linear(width, width, kernel_init, dtype=dtype, rngs=rngs, **biased)
        self.out = linear(width, width, out_init, dtype=dtype, rngs=rngs)
        self.position_bias = RelativePositionBias(grid, heads, rngs=rngs) if grid else None

    def __call__(self, x_BND, bias_HNN=None, scale_D=None):
        """What each token reads of the others, [B, N, D].

        Args:
          x_BND: after the norm.
          bias_HNN: float32 (key, query), shared by the layers, or None.
          scale_D: what the result is multiplied by, or None.
        """
        rows = [product(x_BND, kernel_DD.astype(x_BND.dtype)) for kernel_DD in self._kernels()]
        read_BND = self._read(rows, bias_HNN)
        kernel_DD, bias_D = self._out(scale_D)
        return product(read_BND, kernel_DD.astype(x_BND.dtype)) + bias_D.astype(x_BND.dtype)

    def with_norm(self, x_BND, norm: nnx.LayerNorm, keep_B, bias_HNN=None, scale_D=None):
        """x + keep * `__call__` of norm(x), by the kernels of `fused_projections`."""
        parameters = norm.scale[...], norm.bias[...], self._kernels()
        x_BND, *columns = queries_keys_values(x_BND, *parameters, norm.epsilon)
        rows = [x_BDN.swapaxes(1, 2) for x_BDN in columns]
        read_BND = self._read(rows, bias_HNN)
        return add_read(x_BND, read_BND.swapaxes(1, 2), keep_B, *self._out(scale_D))

    def _read(self, rows, bias_HNN):
        """What each token reads of the others, less the values' bias; rows: queries without their
        bias, keys and values. All [B, N, D]."""
        bias_HNN = self._bias(rows[0], bias_HNN)
        return attend(*rows, self._query_bias(), bias_HNN, self.heads, self.way)

    def _out(self, scale_D):
        """Kernel and bias of the last product, times `scale_D`."""
        # The weights of a token add up to 1: the values' bias can as well be added after them.
        kernel_DD, bias_D = self.out.kernel[...], self.out.bias[...]
        if self.value.bias is not None:
            bias_D = bias_D + self.value.bias[...] @ kernel_DD
        return scaled(scale_D, kernel_DD, bias_D)

    def weights(self, x_BND, bias_HNN=None):
        """How much each token looks at each other one, float32 [B, H, N, N] (query, key).

        Rows sum to 1.
        """
        bias_HNN = self._bias(x_BND, bias_HNN)
        if bias_HNN is None:
            bias_HNN = jnp.zeros((self.heads, *x_BND.shape[1:2] * 2))
        kernels = self._kernels()[:2]
        rows = [product(x_BND, kernel_DD.astype(x_BND.dtype)) for kernel_DD in kernels]
        return weights(*rows, self._query_bias(), bias_HNN)

    @property
    def _scale(self) -> float:
        """What queries are multiplied by."""
        return (self.query.kernel.shape[1] // self.heads) ** -0.5

    def _kernels(self) -> tuple:
        """Of queries, which are scaled, keys and values, float32 [D, D]."""
        return self.query.kernel[...] * self._scale, self.key.kernel[...], self.value.kernel[...]

    def _query_bias(self):
        """Of the scaled queries, float32 [D]."""
        bias = self.query.bias
        return jnp.zeros(self.query.kernel.shape[1]) if bias is None else bias[...] * self._scale

    def _bias(self, x_BND, bias_HNN):
        return bias_HNN if self.position_bias is None else self.position_bias(x_BND.shape[1])


def scaled(scale_D, kernel, bias_D):
    """Kernel and bias of a linear layer, times LayerScale's `scale_D` where it is not None.

    So that the result, which would be multiplied, needs no pass over the tokens.
    """
    return (kernel, bias_D) if scale_D is None else (kernel * scale_D, bias_D * scale_D)


def unit(x):
    """`x` divided by its length along the last axis."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Mlp(nnx.Module):
    """Linear, exact GELU (or CLIP's, where `quick` is set), linear."""

    quick = False

    def __init__(self, width: int, hidden: int, kernel_init, out_init, *, dtype, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, kernel_init, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, out_init, dtype=dtype, rngs=rngs)

    def __call__(self, x_BND, scale_D=None):
        """`scale_D`: what the result is multiplied by, or None."""
        kernel_FD, bias_D = scaled(scale_D, self.fc2.kernel[...], self.fc2.bias[...])
        activation = quick_gelu if self.quick else gelu
        y_BND = product(activation(self.fc1(x_BND)), kernel_FD.astype(x_BND.dtype))
        return y_BND + bias_D.astype(x_BND.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block with LayerScale (where `layer_scale` > 0) and stochastic depth."""

    def __init__(
        self,
        layer: int,
        width: int,
        heads: int,
        hidden: int,
        *,
        layer_scale: float,
        norm_eps: float,
        qkv_bias: bool,
        kernel_init: TruncatedNormal,
        grid: tuple[int, int] | None,
        way: str,
        projections_way: str,
        mlp_way: str,
        dtype,
        rngs: nnx.Rngs,
    ):
        """`layer`, from 1: what writes to the residual stream starts divided by sqrt(2 * layer);
        `way`: see `attend`; `projections_way` and `mlp_way`: see `choose_projections` and
        `choose_mlp`."""
        out_init = Divided(kernel_init, math.sqrt(2 * layer))
        self.projections_way, self.mlp_way = projections_way, mlp_way
        self.norm1 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.attention = Attention(
            width,
            heads,
            kernel_init,
            out_init,
            grid=grid,
            qkv_bias=qkv_bias,
            way=way,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, hidden, kernel_init, out_init, dtype=dtype, rngs=rngs)
        self.scale1 = parameter(Constant(layer_scale), (width,), rngs) if layer_scale else None
        self.scale2 = parameter(Constant(layer_scale), (width,), rngs) if layer_scale else None

    def __call__(self, x_BND, bias_HNN=None, keep_2B=None):
        """One block, [B, N, D] -> [B, N, D].

        Args:
          x_BND: the residual stream.
          bias_HNN: float32 (key, query), shared by the layers, or None.
          keep_2B: float32, what the attention and the MLP branch of each image are multiplied by (0
            drops it), or None.
        """
        x_BND = row_major(keep_rows(x_BND))
        scales = self.scale1, self.scale2
        scale1_D, scale2_D = (None if scale is None else scale[...] for scale in scales)
        keep = lambda which: jnp.ones(len(x_BND)) if keep_2B is None else keep_2B[which]
        if self._projections_way(x_BND) == 'plain':
            read_BND = self.attention(self.norm1(x_BND), bias_HNN, scale1_D)
            x_BND = self._add(x_BND, read_BND, keep_2B, 0)
        else:
            x_BND = self.attention.with_norm(x_BND, self.norm1, keep(0), bias_HNN, scale1_D)
        if self._mlp_way(x_BND) == 'plain':
            return self._add(x_BND, self.mlp(self.norm2(x_BND), scale2_D), keep_2B, 1)
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        last = scaled(scale2_D, fc2.kernel[...], fc2.bias[...])
        first = norm.scale[...], norm.bias[...], fc1.kernel[...], fc1.bias[...]
        return mlp_branch(x_BND, keep(1), *first, *last, norm.epsilon)

    def _projections_way(self, x_BND) -> str:
        (_, tokens, width), attention = x_BND.shape, self.attention
        sizes = {'dtype': x_BND.dtype, 'tokens': tokens, 'width': width}
        return choose_projections(self.projections_way, attention.way, attention.heads, **sizes)

    def _mlp_way(self, x_BND) -> str:
        (_, tokens, width), hidden = x_BND.shape, self.mlp.fc1.kernel.shape[1]
        setting = 'plain' if self.mlp.quick else self.mlp_way
        return choose_mlp(setting, dtype=x_BND.dtype, tokens=tokens, width=width, hidden=hidden)

    @staticmethod
    def _add(x_BND, branch_BND, keep_2B, which):
        if keep_2B is not None:
            branch_BND = branch_BND * keep_2B[which, :, None, None].astype(branch_BND.dtype)
        return x_BND + branch_BND
