"""What a model is traced for, which need not be what this process has.

`performance.plan` compiles for chips that are elsewhere.
"""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

# the axes of the mesh over which images and heads lie (`train.sharding`)
ROWS, HEADS = ('slice', 'data', 'fsdp'), 'tensor'


def target_platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the mesh in use (`train.sharding.on_mesh`), else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def row_axes() -> tuple[str, ...]:
    """The axes of the mesh in use over which the compiler splits a batch.

    Those that a `shard_map` around splits already are not among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in ROWS if axis in mesh.axis_names and axis not in mesh.manual_axes)


def keep_rows(x: jax.Array) -> jax.Array:
    """`x`, whose rows stay where those of the batch are.

    Inside a scan the compiler may else rather move tokens than parameters.
    """
    axes = row_axes()
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(axes, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def by_rows(function: Callable, rows: jax.Array) -> jax.Array:
    """function(rows), a row for each.

    Devices compute their own: a loop ends when these are done, and the compiler moves none of them.
    """
    axes = row_axes()
    if not axes:
        return function(rows)
    return jax.shard_map(
        function, in_specs=P(axes), out_specs=P(axes), axis_names=set(axes), check_vma=False
    )(rows)
