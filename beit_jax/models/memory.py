"""Whether arrays and compiled programs fit the memory there is, before it is taken: Linux ends a
process that takes more, without a word."""

from collections.abc import Callable
import math
from pathlib import Path
import re

import jax

from beit_jax.errors import check
from beit_jax.runtime import LESS_MEMORY

# of a container: cgroup v2 and v1
_LIMITS = (
    Path('/sys/fs/cgroup/memory.max'),
    Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)


def available() -> float:
    """Bytes that this process has or can still get; infinite where the system does not say."""
    free = _kilobytes('/proc/meminfo', 'MemAvailable') + _kilobytes('/proc/self/status', 'VmRSS')
    limits = [path.read_text().strip() for path in _LIMITS if path.is_file()]
    return min([free, *(float(limit) for limit in limits if limit.isdigit())])


def _kilobytes(file: str, name: str) -> float:
    path = Path(file)
    found = path.is_file() and re.search(rf'^{name}:\s+(\d+) kB', path.read_text(), re.MULTILINE)
    return 1024 * float(found[1]) if found else math.inf


def check_arrays(abstract, what: str) -> None:
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
    shared = available() // jax.local_device_count()
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', shared)
    check(
        size <= limit,
        f'{what} take {size / 1e9:,.1f} GB on each device, which has {limit / 1e9:,.1f} GB: make '
        'config.model smaller, or raise config.mesh.fsdp.',
    )


def check_program(compiled: jax.stages.Compiled, what: str) -> None:
    """Raises RequestError where a program takes more memory, on all devices of this process, than
    the machine has."""
    memory = compiled.memory_analysis()
    if jax.default_backend() != 'cpu' or not memory:
        return
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    takes = memory.argument_size_in_bytes + made + memory.temp_size_in_bytes
    takes, there = takes * jax.local_device_count(), available()
    check(
        takes <= there,
        f'{what} takes {takes / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f} GB: '
        f'{LESS_MEMORY}.',
    )


def compiled_when_called(function, what: str) -> Callable:
    """A jitted function that is compiled at its first call, for arguments of one shape, and refused
    where it does not fit."""
    compiled = None

    def call(*arguments):
        nonlocal compiled
        if compiled is None:
            compiled = function.lower(*arguments).compile()
            check_program(compiled, what)
        return compiled(*arguments)

    return call
