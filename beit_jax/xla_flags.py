"""Flags for XLA that our programs start with. XLA reads them once, at the first use of a device."""
from importlib.metadata import version
import os

_LIBRARY = 'xla_cpu_experimental_ynn_fusion_type'


def set_xla_flags() -> None:
    """On a CPU, keeps sums and maxima from the library YNNPACK, where a small model's step takes a third longer (docs/benchmarks.md; JAX
    issue 37465). A user's own setting of that flag stays. Only for the versions that were tried: XLA ends a process at a flag that it does
    not know, and a later one may be fast by itself."""
    flags, jaxlib = os.environ.get('XLA_FLAGS', ''), tuple(int(number) for number in version('jaxlib').split('.')[:2])
    if (0, 10) <= jaxlib <= (0, 12) and _LIBRARY not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} --{_LIBRARY}=-reduce'.strip()
