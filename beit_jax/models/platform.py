"""What a model is traced for, which need not be what this process has.

`performance.plan` compiles for chips that are elsewhere.
"""

from collections.abc import Callable
import math
import os

import jax
from jax.sharding import PartitionSpec as P

from beit_jax.errors import check

# the axes of the mesh over which images and heads lie (`train.sharding`)
ROWS, HEADS = ('slice', 'data', 'fsdp'), 'tensor'


def target_platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the mesh in use (`train.sharding.on_mesh`), else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def host_memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_memory(abstract, what: str) -> None:
    """Refuses arrays that are larger than a device of this process, before they are made.

    Args:
      abstract: a tree of their shapes, dtypes and shardings (None: whole on each device).
      what: they are, in words, a plural.

    Raises:
      RequestError: there is no such memory. Devices that are the CPU share the machine's.
    """
    size = 0
    for leaf in jax.tree.leaves(abstract):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size += math.prod(shape) * leaf.dtype.itemsize
    shared = host_memory() // jax.local_device_count()
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', shared)
    check(
        size <= limit,
        f'{what} take {size / 1e9:,.1f} GB on each device, which has {limit / 1e9:,.1f} GB: make '
        'config.model smaller, or raise config.mesh.fsdp.',
    )


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
