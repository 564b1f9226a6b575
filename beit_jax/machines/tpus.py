"""Kinds of TPU and their published figures."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of a kind of TPU (Google's published figures; peak and bandwidth are those of a chip, with
    all its cores)."""

    flops_per_cycle: int  # bfloat16
    hertz: float
    bytes_per_second: float  # of its memory
    memory: float  # bytes
    cores: int  # that share the parallel steps of a kernel
    # of a matrix unit, for 16 rows of bfloat16: follows from the peak and the units' sides
    product_cycles: int
    on_chip: int  # bytes of a core's own memory (VMEM), as the compiler counts them
    link_bytes_per_second: float  # of all its links to other chips of its slice


CHIPS = {
    'v4': Chip(262_144, 1.05e9, 1.228e12, 32 * 2**30, 2, 16, 16 * 2**20, 3e11),
    'v5e': Chip(131_072, 1.5e9, 8.19e11, 16 * 2**30, 1, 16, 128 * 2**20, 2e11),
    'v5p': Chip(262_144, 1.75e9, 2.765e12, 95 * 2**30, 2, 16, 64 * 2**20, 6e11),
    'v6e': Chip(524_288, 1.75e9, 1.64e12, 32 * 2**30, 1, 8, 128 * 2**20, 4.48e11),
}

# The environment of libtpu where it only compiles: there is no TPU for it to ask, to complain of
# not finding, or to take from others that plan at the same time.
WITHOUT_TPU = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
