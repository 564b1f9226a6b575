"""How parameters start: initialisers that can say in words what they draw."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """Normal draws of deviation `std`, cut at +-`bound` (absolute). BEiT cuts at ONE deviation."""

    std: float
    bound: float

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        cut = self.bound / self.std
        # float32 draws end before; truncated_normal would now and then give the bound itself
        if cut > 6:
            return jax.random.normal(key, shape, dtype) * self.std
        return jax.random.truncated_normal(key, -cut, cut, shape, dtype) * self.std

    def __str__(self):
        return f'truncated_normal({self.std}, +-{self.bound})'


@dataclasses.dataclass(frozen=True)
class Divided:
    """What `initializer` draws, divided by `divisor`."""

    initializer: TruncatedNormal
    divisor: float

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        return self.initializer(key, shape, dtype) / self.divisor

    def __str__(self):
        return f'{self.initializer} / {self.divisor:.6f}'


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform draws from -bound to bound."""

    bound: float

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)

    def __str__(self):
        return f'uniform(+-{self.bound:.6f})'


@dataclasses.dataclass(frozen=True)
class Constant:
    """Every element is `value`."""

    value: float

    def __call__(self, key, shape, dtype=jnp.float32, **_):
        return jnp.full(shape, self.value, dtype)

    def __str__(self):
        return f'constant({self.value:g})'


def parameter(init, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter that remembers how it is initialised."""
    return nnx.Param(init(rngs.params(), shape), initializer=init)
