"""Memory that a step on a CPU has used, for the next step."""
import ctypes

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """On a CPU and with glibc, keeps what a step has used in the process. XLA takes all that a step needs in one block, which glibc else gives
    back to the system, to be cleared anew page by page: a third of a small model's step (docs/benchmarks.md).

    Call it before the first use of a device: of the heaps only that of the main thread can be kept so, and a step takes its memory from there
    where Python's thread runs it, as it does without asynchronous dispatch.
    """
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    libc = ctypes.CDLL(None)
    if jax.default_backend() == 'cpu' and hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_MAX, 0)  # blocks of any size lie in the heap
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which is not given back
