"""What the kernels of a block for a TPU, `fused_attention`, `fused_projections` and `fused_mlp`,
have in common: where they are taken, how they run, and LayerNorm. Shape legend: B images, R rows, D
width."""

from collections.abc import Callable, Mapping
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from beit_jax.errors import check
from beit_jax.machines.peaks import chip_of
from beit_jax.machines.tpus import CHIPS, Chip
from beit_jax.models.platform import (
    HEADS,
    NONE,
    on_each_device,
    row_axes,
    target_kind,
    target_platform,
)

# chips on which a whole step takes less with them, by the compiler's estimate (docs/benchmarks.md)
FASTER_ON = CHIPS['v5e'], CHIPS['v5p'], CHIPS['v6e']
KERNEL_WAYS = ('auto', 'plain', 'pallas')
_LANES = 128  # what the widths of matrices must be multiples of
_TILE = 16  # rows of bfloat16
_IMAGES = 4  # at a time, at most


def choose_kernels(part: str, setting: str, hindrance: Callable[[], str]) -> str:
    """How a part of a block is computed on the devices that are traced for: 'plain' (in JAX) or
    'pallas'.

    Args:
      part: 'projections' or 'mlp'.
      setting: of KERNEL_WAYS, `config.model.PART`; 'auto': the kernels where they can be taken, on
        FASTER_ON.
      hindrance: gives why they cannot be taken, and what to do; '' where nothing hinders.

    Raises:
      RequestError: a setting that cannot be taken here.
    """
    if setting == 'plain' or target_platform() == NONE or (setting == 'auto' and not is_faster()):
        return 'plain'
    why = hindrance()
    check(setting == 'auto' or not why, f'config.model.{part}={setting}: {why}, or leave it auto.')
    return 'plain' if why else 'pallas'


def is_faster() -> bool:
    """Whether the devices that are traced for are FASTER_ON."""
    return chip_of(target_kind()) in FASTER_ON


def tpu_hindrance() -> str:
    """Why there are no kernels at all, and what to do, or ''."""
    if target_platform() == 'tpu':
        return ''
    return f'these kernels are for TPUs, this is a {target_platform()}: run it on one'


def kernel_hindrance(dtype, widths: Mapping[str, int]) -> str:
    """What hinders the kernels of either part, and what to do, or ''; widths: of matrices, by the
    settings that decide them."""
    name = jnp.dtype(dtype).name
    if why := tpu_hindrance():
        return why
    if name != 'bfloat16':
        return f'they do not take {name}: set config.compute_dtype=bfloat16'
    for setting, width in widths.items():
        if width % _LANES:
            return f'{setting} is {width}, no multiple of {_LANES}: change it'
    if jax.sharding.get_abstract_mesh().shape.get(HEADS, 1) > 1:
        return 'each device is to have whole products: set config.mesh.tensor=1'
    return ''


def room_hindrance(room: Callable[[int], int], widths: str, tokens: int) -> str:
    """What hinders where parameters of some `widths` leave no room for the tokens of an image, and
    what to do, or ''; room: bytes on a chip -> images that fit there."""
    if room(on_chip_memory()):
        return ''
    fitting = [kind for kind, chip in CHIPS.items() if room(_for_kernels(chip))]
    elsewhere = f'run it on a {" or ".join(fitting)}, or ' if fitting else ''
    return (
        f'parameters of {widths} and {tokens} tokens do not fit on the chip of a {target_kind()}: '
        f'{elsewhere}lower config.data.image_size or config.model.width'
    )


def on_chip_memory() -> int:
    """Bytes on the chip that kernels may take, of the devices that are traced for; 0 where that is
    not known."""
    chip = chip_of(target_kind())
    return _for_kernels(chip) if chip else 0


def _for_kernels(chip: Chip) -> int:
    return chip.on_chip * 19 // 20


def rows_of(tokens: int) -> int:
    """That bfloat16 tokens take in memory."""
    return -(-tokens // _TILE) * _TILE


def columns_of(tokens: int) -> int:
    """Likewise, where each is a column."""
    return -(-tokens // _LANES) * _LANES


def largest_divisor(number: int, most: int) -> int:
    """Of `number`, up to `most`."""
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)


def on_images(run: Callable, arrays: int, shared: int, results: int) -> Callable:
    """`run` on each device of the mesh in use with its images of the first `arrays` that it takes,
    and all of what is `shared`."""
    images = P(row_axes())
    return on_each_device(run, (images,) * arrays + (P(),) * shared, (images,) * results)


def run_on_images(kernel, arrays, shared, results, sums, *, room, interpret, name) -> tuple:
    """Runs a kernel on some images at a time.

    Args:
      arrays, results: what it takes and gives, or their shapes, [B, ...].
      shared: arrays that it takes whole.
      sums: shapes of sums over images, which it gives in float32, of each core: [1 or 2, ...].
      room: bytes on a chip -> images that fit there.
    """
    batch = len(arrays[0])
    # where it is interpreted, there is no limit
    most = min(_IMAGES, room(on_chip_memory()) or _IMAGES)
    images = largest_divisor(batch, most)
    chip = chip_of(target_kind())
    cores = math.gcd(batch // images, chip.cores if chip else 2)
    steps = batch // images // cores
    block = lambda array: pl.BlockSpec(
        (images, *array.shape[1:]), lambda core, step: (core * steps + step, 0, 0)
    )
    # once, for it never changes
    once = {'pipeline_mode': pl.Buffered(1)}
    whole = lambda array: pl.BlockSpec(array.shape, lambda core, step: (0, 0), **once)
    in_sum = lambda shape: pl.BlockSpec((1, *shape), lambda core, step: (core, 0, 0))
    like = jax.ShapeDtypeStruct
    call = pl.pallas_call(
        kernel,
        grid=(cores, steps),
        interpret=interpret,
        in_specs=[*map(block, arrays), *map(whole, shared)],
        out_specs=[*map(block, results), *map(in_sum, sums)],
        out_shape=[
            *(like(result.shape, result.dtype) for result in results),
            *(like((cores, *shape), jnp.float32) for shape in sums),
        ],
        name=name,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary'),
            vmem_limit_bytes=on_chip_memory() or None,
        ),
    )
    return tuple(call(*arrays, *shared))


def start_sums(sums) -> None:
    """In a kernel: sums start at 0, on each core."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        for each in sums:
            each[...] = jnp.zeros_like(each)


def dot(a, b, contract_a: int = 1, contract_b: int = 0):
    """The product of two matrices over an axis of each, float32."""
    axes = ((contract_a,), (contract_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def norm_units(x_RD, eps: float):
    """What LayerNorm multiplies by its scale, and what it multiplied by: float32 [R, D], [R, 1]."""
    mean = jnp.mean(x_RD, axis=1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x_RD * x_RD, axis=1, keepdims=True) - mean * mean, 0)
    inverse = jax.lax.rsqrt(variance + eps)
    return (x_RD - mean) * inverse, inverse


def through_norm(d_normed_RD, units_RD, inverse_R1, scale_1D):
    """The gradient of what LayerNorm took, from that of what it gave: float32 [R, D]."""
    d_units = d_normed_RD * scale_1D
    mean = lambda array: jnp.mean(array, axis=1, keepdims=True)
    return (d_units - mean(d_units) - units_RD * mean(d_units * units_RD)) * inverse_R1
