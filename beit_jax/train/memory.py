"""Whether a compiled program fits the memory of this machine. Asked before it runs on a CPU, for
Linux ends a process that takes more than there is, without a word; accelerators say it by
themselves."""

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


def check_memory(compiled: jax.stages.Compiled, what: str) -> None:
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
            check_memory(compiled, what)
        return compiled(*arguments)

    return call
