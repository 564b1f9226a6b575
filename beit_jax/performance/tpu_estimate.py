"""What the TPU's own compiler says of a program that it compiled: cycles by operation, and bytes
that chips receive from one another. Needs libtpu, and no TPU.

It reads the optimised text of the program, in which every fusion carries the compiler's own
estimate. Transfers are not in the cycles: they overlap with arithmetic as far as the compiler finds
any.
"""

import collections
from collections.abc import Sequence
import concurrent.futures
import functools
import importlib.util
import os
import re

from beit_jax.errors import RequestError, check
from beit_jax.machines.tpus import CHIPS, WITHOUT_TPU
from beit_jax.performance import hlo
from beit_jax.performance.estimate import Estimate

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WALKED = ('call', 'conditional', 'fusion')
BY_SCHEDULE = ' (a kernel, by its schedule)'  # behind its name
EXAMPLES = 'v4:2x2x1, v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:4x4, v6e:16x16'


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
        for name, value in WITHOUT_TPU.items():
            os.environ.setdefault(name, value)
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
        from beit_jax.performance.tpu_kernels import kernel_cycles
        from beit_jax.train import jaxprs

        found, kernels, runs = estimate(text, trips), {}, collections.Counter()
        for equation, times in jaxprs.equations(traced.jaxpr):
            if equation.primitive.name == 'pallas_call':
                shapes = (variable.aval.shape for variable in equation.invars)
                kernel = equation.params['name'], *shapes
                kernels[kernel] = equation
                runs[kernel] += times
        # each compiles in a process of its own
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            schedule = functools.partial(kernel_cycles, topology=self.topology)
            cycles = dict(zip(kernels, pool.map(schedule, kernels.values())))
        for kernel, times in runs.items():
            found.cost += times * cycles[kernel]
            found.operations[kernel[0] + BY_SCHEDULE] += times * cycles[kernel]
        return found


def estimate(text: str, trips: int) -> Estimate:
    """Adds up the cycles in a program; a loop of unknown length counts `trips` times."""
    result = Estimate()
    for _, line, times in hlo.executed(*hlo.split(text), trips, _WALKED):
        if cycles := cycles_of(line):
            result.cost += times * cycles
            result.operations[hlo.operation(line)] += times * cycles
        if received := hlo.received(line):
            kind, size = received
            result.received[kind] += times * size
    return result


def cycles_of(line: str) -> int:
    """The compiler's estimate of an instruction."""
    found = _CYCLES.search(line)
    return int(found[1]) if found else 0
