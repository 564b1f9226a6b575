"""What the TPU's own compiler says of a program that it compiled: cycles by operation, and bytes
that chips receive from one another. Needs libtpu, and no TPU.

It reads the optimised text of the program, in which every fusion carries the compiler's own
estimate. Transfers are not in the cycles: they overlap with arithmetic as far as the compiler finds
any.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import re

from beit_jax.errors import RequestError, check
from beit_jax.performance import hlo
from beit_jax.performance.estimate import Estimate

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WALKED = ('call', 'conditional', 'fusion')
EXAMPLES = 'v4:2x2x1, v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:4x4, v6e:16x16'


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of a kind of TPU (Google's published figures; peak and bandwidth are those of a chip, with
    all its cores)."""

    flops_per_cycle: int  # bfloat16
    hertz: float
    bytes_per_second: float  # of its memory
    memory: float  # bytes
    cores: int  # that share the parallel steps of a kernel
    link_bytes_per_second: float  # of all its links to other chips of its slice


CHIPS = {
    'v4': Chip(262_144, 1.05e9, 1.228e12, 32 * 2**30, 2, 3e11),
    'v5e': Chip(131_072, 1.5e9, 8.19e11, 16 * 2**30, 1, 2e11),
    'v5p': Chip(262_144, 1.75e9, 2.765e12, 95 * 2**30, 2, 6e11),
    'v6e': Chip(524_288, 1.75e9, 1.64e12, 32 * 2**30, 1, 4.48e11),
}


class Tpu:
    """The `Target` of a topology, for example v5e:4x4."""

    device, unit = 'chip', 'cycles'
    figures = 'Estimates of the TPU compiler, per chip: nothing ran on a TPU.'
    transfers = 'at the published rate of links within a slice, if none overlaps'
    more_memory = ''

    def __init__(self, topology: str):
        self.topology, self._chip = topology, CHIPS[topology.partition(':')[0]]
        self.units_per_second = self._chip.hertz
        self.flops_per_second = self._chip.flops_per_cycle * self._chip.hertz
        self.memory = self._chip.memory
        self.link_bytes_per_second = self._chip.link_bytes_per_second

    def devices(self, slices: int) -> Sequence:
        from jax.experimental import topologies

        check(
            importlib.util.find_spec('libtpu') is not None,
            'planning for a TPU takes its compiler: pip install "jax[tpu]".',
        )
        try:
            found = topologies.get_topology_desc(self.topology, platform='tpu', num_slices=slices)
            return found.devices
        except Exception as error:  # of the compiler, of many types
            raise RequestError(
                f'--topology={self.topology} is unknown: give KIND:SHAPE, for example {EXAMPLES}. '
                f'({str(error).splitlines()[0][:200]})'
            ) from error

    def estimate(self, text: str, traced, trips: int) -> Estimate:
        """Kernels, of which the compiler says nothing, count by the schedule of their
        instructions."""
        from beit_jax.performance import jaxprs
        from beit_jax.performance.tpu_kernels import kernel_cycles

        found, chip, known = estimate(text, trips), self._chip, {}
        bytes_per_cycle = chip.bytes_per_second / chip.hertz
        for equation, times in jaxprs.equations(traced.jaxpr):
            if equation.primitive.name != 'pallas_call':
                continue
            name = equation.params['name']
            kernel = name, *(variable.aval.shape for variable in equation.invars)
            if kernel not in known:
                known[kernel] = kernel_cycles(equation, self.topology, chip.cores, bytes_per_cycle)
            found.cost += times * known[kernel]
            found.operations[f'{name} (a kernel, by its schedule)'] += times * known[kernel]
        return found


def estimate(text: str, trips: int) -> Estimate:
    """Adds up the cycles in a program; a loop of unknown length counts `trips` times."""
    result = Estimate()
    for _, line, times in hlo.executed(*hlo.split(text), trips, _WALKED):
        if cycles := _CYCLES.search(line):
            result.cost += times * int(cycles[1])
            result.operations[hlo.operation(line)] += times * int(cycles[1])
        if received := hlo.received(line):
            kind, size = received
            result.received[kind] += times * size
    return result
