"""What a process does before JAX starts: flags for XLA, memory that a step on a CPU keeps, programs
that are compiled once."""

import ctypes
from importlib.metadata import version
import os
from pathlib import Path

_LIBRARY = 'xla_cpu_experimental_ynn_fusion_type'
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def set_xla_flags() -> None:
    """On a CPU, keeps sums and maxima from the library YNNPACK, where a small model's step takes a
    third longer (docs/benchmarks.md; JAX issue 37465). A user's own setting of that flag stays.
    Only for the versions that were tried: XLA ends a process at a flag that it does not know, and a
    later one may be fast by itself."""
    flags = os.environ.get('XLA_FLAGS', '')
    jaxlib = tuple(int(number) for number in version('jaxlib').split('.')[:2])
    if (0, 10) <= jaxlib <= (0, 12) and _LIBRARY not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} --{_LIBRARY}=-reduce'.strip()


def keep_memory() -> None:
    """On a CPU and with glibc, keeps what a step has used in the process. XLA takes all that a step
    needs in one block, which glibc else gives back to the system, to be cleared anew page by page:
    a third of a small model's step (docs/benchmarks.md).

    Call it before the first use of a device: of the heaps only that of the main thread can be kept
    so, and a step takes its memory from there where Python's thread runs it, as it does without
    asynchronous dispatch.
    """
    import jax

    jax.config.update('jax_cpu_enable_async_dispatch', False)
    libc = ctypes.CDLL(None)
    if jax.default_backend() == 'cpu' and hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_MAX, 0)  # blocks of any size lie in the heap
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which is not given back


def keep_programs(workdir: Path) -> None:
    """Has JAX keep what it compiles in the work directory, for the next start, unless it keeps it
    elsewhere (JAX_COMPILATION_CACHE_DIR)."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
