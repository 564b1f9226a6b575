"""Memory that a step on a CPU has used, for the next step."""
import ctypes

import jax

# mallopt's numbers (malloc.h): a block of any size lies in the heap, and the heap is not given back
_SETTINGS = {'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}


def keep_memory() -> None:
    """On a CPU and with glibc, keeps what a step has used in the process. XLA takes all that a step needs in one block, which glibc else gives
    back to the system, to be cleared anew page by page: a third of a small model's step (docs/benchmarks.md).

    Call it before the first use of a device: of the heaps only that of the main thread can be kept so, and a step takes its memory from there
    where Python's thread runs it, as it does without asynchronous dispatch.
    """
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    libc = ctypes.CDLL(None)
    if jax.default_backend() == 'cpu' and hasattr(libc, 'mallopt'):
        for setting in _SETTINGS.values():
            libc.mallopt(*setting)
