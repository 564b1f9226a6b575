"""Does a recipe's training step fit a TPU, and how fast is it? The TPU's own compiler says so, on a machine without one.

It compiles the real step for the topology, takes minutes, and needs the compiler: pip install "jax[tpu]". With an empty
config.tokenizer.path, pre-training is planned on given tokens; with a tokenizer or --dall_e, that is part of the step. With
config.mesh.slice=N the chips are N slices of the topology. All figures are estimates of the compiler: cycles do not count what chips wait for
one another.
"""
import argparse
import dataclasses
import importlib.util
import json
import os
from pathlib import Path
import re
import time

from beit_jax.config import RunConfig, check
from beit_jax.errors import RequestError
from beit_jax.tools import arguments


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of a kind of TPU (Google's published figures; peak and bandwidth are those of a chip, with all its cores)."""
    flops_per_cycle: int  # bfloat16
    hertz: float
    bytes_per_second: float  # of its memory
    memory: float  # bytes
    cores: int  # that share the parallel steps of a kernel
    link_bytes_per_second: float  # of all its links to other chips of its slice


CHIPS = {'v4': Chip(262_144, 1.05e9, 1.228e12, 32 * 2**30, 2, 3e11), 'v5e': Chip(131_072, 1.5e9, 8.19e11, 16 * 2**30, 1, 2e11),
         'v5p': Chip(262_144, 1.75e9, 2.765e12, 95 * 2**30, 2, 6e11), 'v6e': Chip(524_288, 1.75e9, 1.64e12, 32 * 2**30, 1, 4.48e11)}
# There is no TPU for libtpu to ask, to complain of not finding, or to take from others that plan at the same time.
WITHOUT_TPU = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
               'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
EXAMPLES = 'v4:2x2x1, v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:4x4, v6e:16x16'


class MemoryLimitError(RequestError):
    """A step for which a chip has too little memory."""


def plan(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """Compiles the training step and gives what the compiler says of it; sizes and cycles are those of one chip. `dall_e`: with DALL-E's
    tokenizer where the config has none.

    Raises:
      RequestError: no such topology, a batch or a mesh that does not divide; `MemoryLimitError`.
    """
    import jax

    from beit_jax.tools.programs import initial_programs, peak, peak_in_turns, step_programs
    from beit_jax.train.sharding import make_mesh
    chip, devices = CHIPS.get(topology.partition(':')[0]), _devices(topology, config.mesh.slice)
    mesh = make_mesh(config.mesh, devices)
    parts, memories = {}, []
    for name, program in step_programs(config, mesh, dall_e).items():
        found, memory_of_program = _examine(program, config, topology)
        parts[name] = {'flops': program.flops // len(devices)} | found
        memories.append(memory_of_program)
    started = [_compile(program, config)[0].memory_analysis() for program in initial_programs(config, mesh)]
    cycles, flops = (sum(part[name] for part in parts.values()) for name in ('cycles', 'flops'))
    seconds = cycles / chip.hertz
    received = sum(size for part in parts.values() for size in part['received'].values())
    memory = peak_in_turns(memories)
    if memory > chip.memory:
        raise _exceeded(_too_much(memory, chip.memory), config)
    return {
        'topology': topology, 'chips': len(devices), 'mesh': dict(mesh.shape), 'task': config.task, 'batch_size': config.batch_size,
        'images_per_chip': config.batch_size // len(devices), 'jax': jax.__version__, 'programs': parts, 'cycles': cycles, 'flops': flops,
        'step_seconds': seconds, 'images_per_second': config.batch_size / seconds, 'utilisation': flops / cycles / chip.flops_per_cycle,
        'transfer_seconds': received / chip.link_bytes_per_second, 'initial_state': started[-1].output_size_in_bytes,
        # the state is made of the parameters, which are drawn one after the other
        'initial_memory': max(peak(started[-1]), started[-1].argument_size_in_bytes + max(map(peak, started[:-1]))),
        'memory': memory, 'memory_limit': chip.memory}


def _examine(program, config, topology: str) -> tuple:
    """(what the compiler says of one program, its memory analysis). Kernels, of which it says nothing, count by the schedule of their
    instructions."""
    from beit_jax.tools import jaxprs
    from beit_jax.tools.programs import peak
    from beit_jax.tools.tpu_estimate import estimate
    from beit_jax.tools.tpu_kernels import kernel_cycles
    began = time.perf_counter()
    compiled, traced = _compile(program, config)
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    found = estimate(compiled.as_text(), trips=getattr(getattr(config, 'model', None), 'depth', 1))
    kernels = [(equation, times) for equation, times in jaxprs.equations(traced.jaxpr) if equation.primitive.name == 'pallas_call']
    chip, cycles = CHIPS[topology.partition(':')[0]], {}
    for equation, times in kernels:
        name, shapes = equation.params['name'], tuple(variable.aval.shape for variable in equation.invars)
        if (name, shapes) not in cycles:
            cycles[name, shapes] = kernel_cycles(equation, topology, chip.cores, chip.bytes_per_second / chip.hertz)
        found.cycles += times * cycles[name, shapes]
        found.operations[f'{name} (a kernel, by its schedule)'] += times * cycles[name, shapes]
    return {'cycles': found.cycles, 'compile_seconds': seconds, 'arguments': memory.argument_size_in_bytes,
            'temporaries': memory.temp_size_in_bytes, 'memory': peak(memory), 'received': dict(found.received),
            'operations': dict(found.operations.most_common(10))}, memory


def _devices(topology: str, slices: int = 1):
    """The chips of a topology, or of several slices of it.

    Raises:
      RequestError: there is no such topology, or no compiler.
    """
    from jax.experimental import topologies
    check(importlib.util.find_spec('libtpu') is not None, 'planning takes the compiler of the TPU: pip install "jax[tpu]".')
    kind = topology.partition(':')[0]
    unknown = f'--topology={topology} is unknown: give KIND:SHAPE, for example {EXAMPLES}.'
    check(kind in CHIPS, unknown)
    try:
        return topologies.get_topology_desc(topology, platform='tpu', num_slices=max(1, slices)).devices
    except Exception as error:  # of the compiler, of many types
        raise RequestError(f'{unknown} ({str(error).splitlines()[0][:200]})') from error


def _compile(program, config):
    """(the compiled program, what was traced).

    Raises:
      RequestError: it does not fit.
    """
    import jax
    traced = program.function.trace(*program.inputs)
    try:
        return traced.lower().compile(), traced
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        sizes = re.search(r'Used (?P<used>[\d.]+\w) of (?P<limit>[\d.]+\w) hbm', str(error)) or re.search(
            r'temporaries \((?P<used>[\d.]+\w)\) exceeds available HBM \((?P<limit>[\d.]+\w)\)', str(error))
        what = _too_much(*map(_size, sizes.group('used', 'limit'))) if sizes else str(error).splitlines()[0]
        raise _exceeded(what, config) from error


def _size(text: str) -> float:
    """'15.75G' -> bytes."""
    return float(text[:-1]) * 2 ** {'K': 10, 'M': 20, 'G': 30}[text[-1]]


def _too_much(used: float, limit: float) -> str:
    return f'a chip has {limit / 1e9:.2f} GB of memory, this takes {used / 1e9:.2f} GB, {(used - limit) / 1e9:.2f} GB too much'


def _exceeded(what: str, config) -> MemoryLimitError:
    return MemoryLimitError(f'{what}: lower config.batch_size ({config.batch_size}), set config.model.remat=true, or raise '
                            'config.accumulate_steps or config.mesh.fsdp.')


def report(result: dict) -> str:
    """A table of what `plan` found."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
    lines = [f'{result["task"]}, batch {result["batch_size"]} on {result["topology"]}: {result["chips"]} chips, '
             f'{result["images_per_chip"]} images each; mesh {mesh}; jax {result["jax"]}',
             'Estimates of the TPU compiler, per chip: nothing ran on a TPU.']
    for name, part in result['programs'].items():
        lines += ['', f'{name}: {part["cycles"]:,} cycles; {part["flops"] / 1e12:.2f} TFLOP; arguments {part["arguments"] / 1e9:.2f} GB, '
                  f'temporaries {part["temporaries"] / 1e9:.2f} GB; compiled in {part["compile_seconds"]:.0f} s']
        for operation, cycles in part['operations'].items():
            lines.append(f'  {cycles / part["cycles"]:6.1%} {cycles:>13,}  {operation[-100:]}')
        lines += [f'  received by {kind}: {size / 1e6:.1f} MB' for kind, size in part['received'].items()]
    lines += ['', f'start: {result["initial_state"] / 1e9:.2f} GB of state, made in {result["initial_memory"] / 1e9:.2f} GB; transfers between '
              f'chips take {1e3 * result["transfer_seconds"]:.1f} ms of a step at the published rate of links within a slice, if none overlaps',
              f'memory {result["memory"] / 1e9:.2f} of {result["memory_limit"] / 1e9:.2f} GB; a step {1e3 * result["step_seconds"]:.1f} ms; '
              f'{result["images_per_second"]:,.0f} images/s; utilisation {result["utilisation"]:.1%}']
    return '\n'.join(lines)


def search_batch(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """The largest batch that fits, and the fastest: doubles the images of a chip from the recipe's until they do not fit, or halves them until
    they do, then tries half way between, and halves the smallest as long as that is faster."""
    chips, unit, tried, refused = len(_devices(topology, config.mesh.slice)), config.accumulate_steps, {}, {}

    def attempt(images):
        try:
            tried[images] = plan(dataclasses.replace(config, batch_size=images * chips), topology, dall_e)
            print(f'{images} images a chip: {tried[images]["images_per_second"]:,.0f} images/s, {tried[images]["memory"] / 1e9:.2f} GB',
                  flush=True)
        except MemoryLimitError as error:
            refused[images] = str(error)
            print(f'{images} images a chip: {error}', flush=True)
        return images in tried

    def whole_parts(images):
        return max(unit, images // unit * unit)

    images = whole_parts(config.batch_size // chips)
    if attempt(images):
        while attempt(images := 2 * images):
            pass
    else:
        while images > unit and not attempt(images := whole_parts(images // 2)):
            pass
    while tried and min(refused) - max(tried) > max(8, unit, max(tried) // 4):
        attempt(whole_parts((min(refused) + max(tried)) // 2))
    check(bool(tried), f'not even {min(refused)} images a chip fit: {refused[min(refused)]}')
    while (fastest := max(tried, key=lambda images: tried[images]['images_per_second'])) == min(tried) > unit:
        attempt(whole_parts(fastest // 2))
    return tried[fastest] | {'largest_images_per_chip': max(tried), 'fastest_images_per_chip': fastest}


def run(options: argparse.Namespace) -> None:
    for name, value in WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    check(not options.json or options.json.parent.is_dir(), f'--json={options.json}: its folder does not exist.')
    config = arguments.recipe_config(options)
    result = (search_batch if options.search_batch else plan)(config, options.topology, options.dall_e)
    print(report(result))
    if options.search_batch:
        print(f'the largest batch that fits: {result["largest_images_per_chip"]} images a chip; the fastest (above): '
              f'{result["fastest_images_per_chip"]}')
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + '\n')


def _arguments() -> argparse.ArgumentParser:
    parser = arguments.parser('plan', __doc__, 'python -m beit_jax.tools.plan --config=configs/pretrain_imagenet1k.py --topology=v5e:4x4')
    arguments.add_config(parser)
    parser.add_argument('--topology', required=True, help=f'{EXAMPLES}, ...')
    parser.add_argument('--dall_e', action='store_true', help="where config.tokenizer.path is empty, with DALL-E's tokenizer in the step")
    parser.add_argument('--search-batch', action='store_true', help='find the largest batch that fits and the fastest one')
    parser.add_argument('--json', type=Path, help='also write the result here')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
