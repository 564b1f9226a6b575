"""Whether a recipe's step fits a device that is elsewhere, and how fast it is: the step is compiled
for it. Needs the compiler of that device, and none of the devices.

On a TPU the figures are estimates of its compiler, on a GPU a roofline over what XLA compiles.
"""

import dataclasses
import re
import time

from beit_jax.errors import RequestError, check
from beit_jax.performance import gpu_estimate, tpu_estimate
from beit_jax.performance.estimate import Target
from beit_jax.settings.run import RunConfig

# what the compiler says of a program that takes more memory than there is
_USED = r'Used ([\d.]+\w) of ([\d.]+\w) hbm'
_TEMPORARIES = r'temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)'
EXAMPLES = f'{tpu_estimate.EXAMPLES}; {gpu_estimate.EXAMPLES}'
_TARGETS = dict.fromkeys(tpu_estimate.CHIPS, tpu_estimate.Tpu) | dict.fromkeys(
    gpu_estimate.GPUS, gpu_estimate.GpuTarget
)


class MemoryLimitError(RequestError):
    """A step for which a device has too little memory."""


def target(topology: str) -> Target:
    """What compiles for a topology and estimates what was compiled.

    Raises:
      RequestError: no such kind of device.
    """
    kind = topology.partition(':')[0]
    check(
        kind in _TARGETS,
        f'--topology={topology} is unknown: give KIND:SHAPE of a TPU or KIND:NUMBER of a GPU '
        f'({", ".join(sorted(gpu_estimate.GPUS))}), for example {EXAMPLES}.',
    )
    return _TARGETS[kind](topology)


def plan(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """Compiles the training step and gives what is known of it then; sizes and costs are those of
    one device. `dall_e`: with DALL-E's tokenizer where the config has none.

    Raises:
      RequestError: no such topology, a batch or a mesh that does not divide; `MemoryLimitError`.
    """
    import jax

    from beit_jax.performance.programs import initial_programs, peak, peak_in_turns, step_programs
    from beit_jax.train.sharding import make_mesh

    on = target(topology)
    devices = on.devices(max(1, config.mesh.slice))
    mesh = make_mesh(config.mesh, devices)
    parts, memories = {}, []
    for name, program in step_programs(config, mesh, dall_e).items():
        found, memory_of_program = _examine(program, config, on)
        parts[name] = {'flops': program.flops // len(devices)} | found
        memories.append(memory_of_program)
    workspace = max(part['workspace'] for part in parts.values())
    memory = peak_in_turns(memories) + workspace
    if memory > on.memory:
        raise _exceeded(_too_much(memory, on.memory, on), config, on)
    *draws, whole = [
        _compile(program, config, on)[0].memory_analysis()
        for program in initial_programs(config, mesh)
    ]
    # the state is made of the parameters, which are drawn one after the other
    initial_memory = max(peak(whole), whole.argument_size_in_bytes + max(map(peak, draws)))
    cost = sum(part[on.unit] for part in parts.values())
    flops = sum(part['flops'] for part in parts.values())
    received = sum(sum(part['received'].values()) for part in parts.values())
    seconds = cost / on.units_per_second
    return {
        'topology': topology,
        'chips': len(devices),
        'mesh': dict(mesh.shape),
        'task': config.task,
        'batch_size': config.batch_size,
        'images_per_chip': config.batch_size // len(devices),
        'jax': jax.__version__,
        'device': on.device,
        'figures': on.figures,
        'transfers': on.transfers,
        'unit': on.unit,
        'programs': parts,
        on.unit: cost,
        'flops': flops,
        'step_seconds': seconds,
        'images_per_second': config.batch_size / seconds,
        'utilisation': flops / seconds / on.flops_per_second,
        'transfer_seconds': received / on.link_bytes_per_second,
        'initial_state': whole.output_size_in_bytes,
        'initial_memory': initial_memory,
        'memory': memory,
        'workspace': workspace,
        'memory_limit': on.memory,
    }


def _examine(program, config, on: Target) -> tuple:
    """(what is known of one program, its memory analysis)."""
    from beit_jax.performance.programs import peak

    began = time.perf_counter()
    compiled, traced = _compile(program, config, on)
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    trips = getattr(getattr(config, 'model', None), 'depth', 1)
    found = on.estimate(compiled.as_text(), traced, trips)
    return {
        on.unit: round(found.cost),
        'compile_seconds': seconds,
        'arguments': memory.argument_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'memory': peak(memory),
        'workspace': found.workspace,
        'executed_flops': found.flops or None,
        'received': dict(found.received),
        'operations': dict(found.operations.most_common(10)),
        'kinds': dict(found.kinds.most_common()),
        'counts': dict(found.counts),
    }, memory


def _compile(program, config, on: Target):
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
        sizes = map(_size, sizes.groups()) if sizes else ()
        what = _too_much(*sizes, on) if sizes else text.splitlines()[0]
        raise _exceeded(what, config, on) from error


def _size(text: str) -> float:
    """'15.75G' -> bytes."""
    return float(text[:-1]) * 2 ** {'K': 10, 'M': 20, 'G': 30}[text[-1]]


def _too_much(used: float, limit: float, on: Target) -> str:
    return (
        f'a {on.device} has {limit / 1e9:.2f} GB of memory, this takes {used / 1e9:.2f} GB, '
        f'{(used - limit) / 1e9:.2f} GB too much'
    )


def _exceeded(what: str, config, on: Target) -> MemoryLimitError:
    return MemoryLimitError(
        f'{what}: lower config.batch_size ({config.batch_size}), set config.model.remat=true, or '
        f'raise config.accumulate_steps or config.mesh.fsdp{on.more_memory}.'
    )


def search_batch(config: RunConfig, topology: str, dall_e: bool = False) -> dict:
    """The largest batch that fits, and the fastest: doubles the images of a device from those of
    the recipe until they do not fit, or halves them until they do, then tries half way between, and
    halves the smallest as long as that is faster."""
    on, unit = target(topology), config.accumulate_steps
    chips = len(on.devices(max(1, config.mesh.slice)))
    tried, refused = {}, {}

    def attempt(images):
        """Whether so many fit."""
        changed = dataclasses.replace(config, batch_size=images * chips)
        try:
            found = tried[images] = plan(changed, topology, dall_e)
        except MemoryLimitError as error:
            refused[images] = str(error)
            print(f'{images} images a {on.device}: {error}', flush=True)
            return False
        speed, memory = f'{found["images_per_second"]:,.0f}', f'{found["memory"] / 1e9:.2f}'
        print(f'{images} images a {on.device}: {speed} images/s, {memory} GB', flush=True)
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
    check(bool(tried), f'not even {min(refused)} images a {on.device} fit: {refused[min(refused)]}')
    while fastest() == min(tried) > unit:
        attempt(whole_parts(min(tried) // 2))
    return tried[fastest()] | {
        'largest_images_per_chip': max(tried),
        'fastest_images_per_chip': fastest(),
    }
