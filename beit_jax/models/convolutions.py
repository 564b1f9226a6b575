"""Layers of a convolutional head, as torch and mmcv have them: batch norm over all devices,
deconvolution, convolution with norm and ReLU.

Shape legend: B images, h w rows and columns, C channels, D and E channels before and after.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.models.initializers import Constant, TruncatedNormal, Uniform, parameter

# the last part of the paths of what batch norm measures and nobody learns
STATISTICS = ('running_mean', 'running_var')


def is_statistic(path, _=None) -> bool:
    """Whether a parameter, by its path (a tuple of names), is a running statistic."""
    return path[-1] in STATISTICS


class BatchNorm(nnx.Module):
    """torch's BatchNorm2d, its statistics float32 and over the whole batch on all devices
    (SyncBatchNorm)."""

    def __init__(self, width: int, *, eps: float, momentum: float, rngs: nnx.Rngs):
        self.eps, self.momentum = eps, momentum
        zeros, ones = Constant(0.0), Constant(1.0)
        self.scale = parameter(ones, (width,), rngs)
        self.bias = parameter(zeros, (width,), rngs)
        self.running_mean = parameter(zeros, (width,), rngs)
        self.running_var = parameter(ones, (width,), rngs)

    def __call__(self, x_BhwC, train: bool):
        """[B, h, w, C], of any dtype, which the result has too. With `train` the running statistics
        of this module are replaced."""
        wide_BhwC = x_BhwC.astype(jnp.float32)
        if train:
            mean_C, variance_C = self._measure(wide_BhwC)
        else:
            mean_C, variance_C = self.running_mean[...], self.running_var[...]
        centred_BhwC = wide_BhwC - mean_C
        scale_C = jax.lax.rsqrt(variance_C + self.eps) * self.scale[...]
        return (centred_BhwC * scale_C + self.bias[...]).astype(x_BhwC.dtype)

    def _measure(self, x_BhwC):
        """(mean, biased variance) of the batch. The running variance is unbiased, or 0 where there
        is only one number."""
        # inside a shard_map a device sees its own images only
        axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)

        def mean(values):
            local = jnp.mean(values, axis=(0, 1, 2))
            return jax.lax.pmean(local, axes) if axes else local

        mean_C = mean(x_BhwC)
        variance_C = mean(jnp.square(x_BhwC - mean_C))
        count = math.prod(x_BhwC.shape[:3]) * (jax.lax.psum(1, axes) if axes else 1)
        unbiased_C = variance_C * (count / max(count - 1, 1))
        self._follow(self.running_mean, mean_C)
        self._follow(self.running_var, unbiased_C)
        return mean_C, variance_C

    def _follow(self, running: nnx.Param, new_C):
        running.set_value(
            (1 - self.momentum) * running[...] + self.momentum * jax.lax.stop_gradient(new_C)
        )


class Deconvolution(nnx.Module):
    """torch's ConvTranspose2d with kernel and stride 2: each cell becomes 2 x 2, which share
    nothing with those of others."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        init = Uniform((4 * width) ** -0.5)  # torch's default
        self.dtype = dtype
        self.kernel = parameter(init, (2, 2, width, width), rngs)
        self.bias = parameter(init, (width,), rngs)

    def __call__(self, x_BhwD):
        """[B, h, w, D] -> [B, 2 h, 2 w, D]."""
        batch, rows, columns, width = x_BhwD.shape
        x = jnp.einsum('bhwd,ijde->bhiwje', x_BhwD, self.kernel[...].astype(self.dtype))
        return x.reshape(batch, 2 * rows, 2 * columns, width) + self.bias[...].astype(self.dtype)


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    kernel_init,
    *,
    dtype,
    rngs: nnx.Rngs,
    use_bias: bool = False,
) -> nnx.Conv:
    """size x size, stride 1, [B, h, w, D] -> [B, h, w, E]; remembers how it is initialised."""
    zeros = Constant(0.0)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={'initializer': kernel_init},
        bias_metadata={'initializer': zeros},
    )


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, ReLU (mmcv: ConvModule)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, norm: dict, dtype, rngs: nnx.Rngs):
        """`norm`: the options of `BatchNorm`."""
        # He's, by the number of outputs
        init = TruncatedNormal(math.sqrt(2 / (outputs * size**2)), math.inf)
        self.conv = convolution(inputs, outputs, size, init, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, **norm, rngs=rngs)

    def __call__(self, x_BhwD, train: bool):
        """[B, h, w, D] -> [B, h, w, E]."""
        return jax.nn.relu(self.norm(self.conv(x_BhwD), train))
