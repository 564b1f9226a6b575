"""GELU, exact, and CLIP's."""

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x):
    """x * Phi(x), computed in float32, its slope beside it: the backward pass only multiplies."""
    return gelu_and_slope(x)[0]


def gelu_and_slope(x):
    """(x * Phi(x), its derivative), computed in float32."""
    wide = x.astype(jnp.float32)
    share = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    slope = share + wide * jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return (wide * share).astype(x.dtype), slope.astype(x.dtype)


gelu.defvjp(gelu_and_slope, lambda slope, gradient: (gradient * slope,))


def quick_gelu(x):
    """CLIP's: x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
