"""How long a Pallas kernel takes on a TPU, by the compiler's schedule of its instructions and the
rate of the matrix units: the compiler gives kernels no estimate of its own.

    python -m beit_jax.performance.tpu_kernels TOPOLOGY FILE

compiles one that `jax.export` wrote, in a process of its own, for what has the compiler write its
schedules is a setting of the process.
"""

import math
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from beit_jax.machines.tpus import CHIPS, WITHOUT_TPU

_FLAGS = '--xla_jf_dump_to={} --xla_jf_dump_llo_text=true'
_SCHEDULES = '*-the_kernel*[0-9]-final_bundles*'
_BUNDLE = re.compile(r'^ *0x[0-9a-f]+ ')
_PRODUCT = re.compile(r' vmatmul\.\S*(mxu\d)')


def kernel_cycles(equation, topology: str) -> int:
    """Of one run of the kernel of a `pallas_call` equation: what the instructions of a step of its
    grid take, times the steps, or what its arrays take to pass through the memory, whichever is
    more. The cores of a chip share the steps along parallel axes of the grid."""
    params, chip = equation.params, CHIPS[topology.partition(':')[0]]
    texts = _schedules(equation, topology)
    cycles = max(issue_cycles(text, chip.product_cycles) for text in texts)
    grid, kinds = params['grid_mapping'].grid, params['compiler_params'].dimension_semantics
    parallel = math.prod(size for size, kind in zip(grid, kinds) if kind == 'parallel')
    steps = math.prod(grid) // parallel * -(-parallel // chip.cores)
    moved = sum(_stored_bytes(variable.aval) for variable in (*equation.invars, *equation.outvars))
    return round(max(cycles * steps, moved * chip.hertz / chip.bytes_per_second))


def _schedules(equation, topology: str) -> list[str]:
    """What the compiler writes of each program that the kernel becomes, without what brings its
    arrays there."""

    def the_kernel(*arrays):  # the files are called so
        return equation.primitive.bind(*arrays, **equation.params)

    avals = [variable.aval for variable in equation.invars]
    arrays = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    with tempfile.TemporaryDirectory() as folder:
        file, schedules = Path(folder, 'kernel'), Path(folder, 'schedules')
        file.write_bytes(
            jax.export.export(jax.jit(the_kernel), platforms=['tpu'])(*arrays).serialize()
        )
        schedules.mkdir()
        done = subprocess.run(
            [sys.executable, '-m', 'beit_jax.performance.tpu_kernels', topology, file],
            capture_output=True,
            text=True,
            check=False,
            env=WITHOUT_TPU | os.environ | {'LIBTPU_INIT_ARGS': _FLAGS.format(schedules)},
        )
        if done.returncode:
            raise RuntimeError(
                f'the kernel {equation.params["name"]} does not compile for {topology}: '
                f'{done.stderr[-2000:]}'
            )
        return [path.read_text() for path in schedules.glob(_SCHEDULES)]


def issue_cycles(schedule: str, product_cycles: int) -> int:
    """How long the instructions of a schedule take: a bundle of them a cycle, in order, but that a
    matrix unit takes `product_cycles` for a product, and the next one waits for it, as the schedule
    itself does not know."""
    now, free = 0, {}
    for line in schedule.splitlines():
        if not _BUNDLE.match(line):
            continue
        units = _PRODUCT.findall(line)
        now = max([now + 1, *(free.get(unit, 0) for unit in units)])
        free |= dict.fromkeys(units, now + product_cycles)
    return now


def _stored_bytes(aval) -> int:
    """Of an array in tiles of 128 columns and 32 bytes of rows."""
    *outer, rows, columns = (1, 1, *aval.shape)
    size = aval.dtype.itemsize
    pad = lambda number, multiple: -(-number // multiple) * multiple
    return math.prod(outer) * pad(rows, 32 // size) * pad(columns, 128) * size


def _compile(topology: str, file: str) -> None:
    exported = jax.export.deserialize(bytearray(Path(file).read_bytes()))
    device = topologies.get_topology_desc(topology, platform='tpu').devices[0]
    sharding = SingleDeviceSharding(device)
    arrays = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
        for aval in exported.in_avals
    ]
    jax.jit(exported.call).lower(*arrays).compile()


if __name__ == '__main__':
    _compile(*sys.argv[1:])
