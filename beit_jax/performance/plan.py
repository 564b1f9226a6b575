"""What the TPU's own compiler says of a recipe's step: whether it fits a chip, and how fast it is.
Needs libtpu, and no TPU.

All figures are estimates of the compiler: cycles do not count what chips wait for one another.
"""

import dataclasses
import importlib.util
import re
import time

from beit_jax.errors import RequestError, check
from beit_jax.settings.run import RunConfig


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
# what the compiler says of a program that takes more memory than there is
_USED = r'Used ([\d.]+\w) of ([\d.]+\w) hbm'
_TEMPORARIES = r'temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)'
EXAMPLES = 'v4:2x2x1, v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:4x4, v6e:16x16'


class MemoryLimitError(RequestError):
    """A step for which a chip has too little memory."""


def plan(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """Compiles the training step and gives what the compiler says of it; sizes and cycles are those
    of one chip. `dall_e`: with DALL-E's tokenizer where the config has none.

    Raises:
      RequestError: no such topology, a batch or a mesh that does not divide; `MemoryLimitError`.
    """
    import jax

    from beit_jax.performance.programs import initial_programs, peak, peak_in_turns, step_programs
    from beit_jax.train.sharding import make_mesh

    devices, chip = _devices(topology, config.mesh.slice), CHIPS[_kind(topology)]
    mesh = make_mesh(config.mesh, devices)
    parts, memories = {}, []
    for name, program in step_programs(config, mesh, dall_e).items():
        found, memory_of_program = _examine(program, config, topology)
        parts[name] = {'flops': program.flops // len(devices)} | found
        memories.append(memory_of_program)
    memory = peak_in_turns(memories)
    *draws, whole = [
        _compile(program, config)[0].memory_analysis() for program in initial_programs(config, mesh)
    ]
    # the state is made of the parameters, which are drawn one after the other
    initial_memory = max(peak(whole), whole.argument_size_in_bytes + max(map(peak, draws)))
    cycles = sum(part['cycles'] for part in parts.values())
    flops = sum(part['flops'] for part in parts.values())
    received = sum(sum(part['received'].values()) for part in parts.values())
    seconds = cycles / chip.hertz
    if memory > chip.memory:
        raise _exceeded(_too_much(memory, chip.memory), config)
    return {
        'topology': topology,
        'chips': len(devices),
        'mesh': dict(mesh.shape),
        'task': config.task,
        'batch_size': config.batch_size,
        'images_per_chip': config.batch_size // len(devices),
        'jax': jax.__version__,
        'programs': parts,
        'cycles': cycles,
        'flops': flops,
        'step_seconds': seconds,
        'images_per_second': config.batch_size / seconds,
        'utilisation': flops / cycles / chip.flops_per_cycle,
        'transfer_seconds': received / chip.link_bytes_per_second,
        'initial_state': whole.output_size_in_bytes,
        'initial_memory': initial_memory,
        'memory': memory,
        'memory_limit': chip.memory,
    }


def _examine(program, config, topology: str) -> tuple:
    """(what the compiler says of one program, its memory analysis). Kernels, of which it says
    nothing, count by the schedule of their instructions."""
    from beit_jax.performance import jaxprs
    from beit_jax.performance.programs import peak
    from beit_jax.performance.tpu_estimate import estimate
    from beit_jax.performance.tpu_kernels import kernel_cycles

    began = time.perf_counter()
    compiled, traced = _compile(program, config)
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    found = estimate(compiled.as_text(), trips=getattr(getattr(config, 'model', None), 'depth', 1))
    chip, known = CHIPS[_kind(topology)], {}
    bytes_per_cycle = chip.bytes_per_second / chip.hertz
    for equation, times in jaxprs.equations(traced.jaxpr):
        if equation.primitive.name != 'pallas_call':
            continue
        name = equation.params['name']
        kernel = name, *(variable.aval.shape for variable in equation.invars)
        if kernel not in known:
            known[kernel] = kernel_cycles(equation, topology, chip.cores, bytes_per_cycle)
        found.cycles += times * known[kernel]
        found.operations[f'{name} (a kernel, by its schedule)'] += times * known[kernel]
    return {
        'cycles': found.cycles,
        'compile_seconds': seconds,
        'arguments': memory.argument_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'memory': peak(memory),
        'received': dict(found.received),
        'operations': dict(found.operations.most_common(10)),
    }, memory


def _kind(topology: str) -> str:
    return topology.partition(':')[0]


def _devices(topology: str, slices: int = 1):
    """The chips of a topology, or of several slices of it.

    Raises:
      RequestError: there is no such topology, or no compiler.
    """
    from jax.experimental import topologies

    check(
        importlib.util.find_spec('libtpu') is not None,
        'planning takes the compiler of the TPU: pip install "jax[tpu]".',
    )
    unknown = f'--topology={topology} is unknown: give KIND:SHAPE, for example {EXAMPLES}.'
    check(_kind(topology) in CHIPS, unknown)
    try:
        found = topologies.get_topology_desc(topology, platform='tpu', num_slices=max(1, slices))
        return found.devices
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
        text = str(error)
        if 'RESOURCE_EXHAUSTED' not in text:
            raise
        sizes = re.search(_USED, text) or re.search(_TEMPORARIES, text)
        what = _too_much(*map(_size, sizes.groups())) if sizes else text.splitlines()[0]
        raise _exceeded(what, config) from error


def _size(text: str) -> float:
    """'15.75G' -> bytes."""
    return float(text[:-1]) * 2 ** {'K': 10, 'M': 20, 'G': 30}[text[-1]]


def _too_much(used: float, limit: float) -> str:
    return (
        f'a chip has {limit / 1e9:.2f} GB of memory, this takes {used / 1e9:.2f} GB, '
        f'{(used - limit) / 1e9:.2f} GB too much'
    )


def _exceeded(what: str, config) -> MemoryLimitError:
    return MemoryLimitError(
        f'{what}: lower config.batch_size ({config.batch_size}), set config.model.remat=true, or '
        'raise config.accumulate_steps or config.mesh.fsdp.'
    )


def search_batch(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """The largest batch that fits, and the fastest: doubles the images of a chip from the recipe's
    until they do not fit, or halves them until they do, then tries half way between, and halves the
    smallest as long as that is faster."""
    chips, unit = len(_devices(topology, config.mesh.slice)), config.accumulate_steps
    tried, refused = {}, {}

    def attempt(images):
        """Whether so many fit."""
        changed = dataclasses.replace(config, batch_size=images * chips)
        try:
            found = tried[images] = plan(changed, topology, dall_e)
        except MemoryLimitError as error:
            refused[images] = str(error)
            print(f'{images} images a chip: {error}', flush=True)
            return False
        speed, memory = f'{found["images_per_second"]:,.0f}', f'{found["memory"] / 1e9:.2f}'
        print(f'{images} images a chip: {speed} images/s, {memory} GB', flush=True)
        return True

    def whole_parts(images):
        return max(unit, images // unit * unit)

    def fastest():
        return max(tried, key=lambda images: tried[images]['images_per_second'])

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
    while fastest() == min(tried) > unit:
        attempt(whole_parts(min(tried) // 2))
    return tried[fastest()] | {
        'largest_images_per_chip': max(tried),
        'fastest_images_per_chip': fastest(),
    }
