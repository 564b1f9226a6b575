"""The TPU compiler's estimates must not get worse: `make bench-tpu`."""

import importlib.util

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import pytest

from beit_jax.machines.tpus import CHIPS
from beit_jax.models import fused_attention, kernels
from beit_jax.models import fused_projections as projections
from beit_jax.models.fused_mlp import mlp_branch
from beit_jax.performance.tpu_estimate import Tpu, estimate
from beit_jax.performance.tpu_kernels import kernel_cycles
from beit_jax.train import jaxprs
from tests.performance.planned import planned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('libtpu') is None,
        reason='takes the compiler of the TPU: pip install "jax[tpu]"',
    ),
]

# cycles of each program with libtpu 0.0.42.1: docs/benchmarks.md
CYCLES = {
    ('configs/pretrain_imagenet1k.py', 'v5e:2x2', 64): {
        'step': 86_600_805,
        'tokenizer': 44_541_784,
    },
    ('configs/pretrain_imagenet1k.py:large', 'v5p:2x2x1', 128): {'step': 256_757_128},
    ('configs/pretrain_imagenet1k.py', 'v6e:2x2', 64): {'step': 32_944_906},
}


@pytest.mark.parametrize(('recipe', 'topology', 'images'), CYCLES)
def test_no_slower(recipe, topology, images, tmp_path):
    programs = CYCLES[recipe, topology, images]
    words = [f'--config={recipe}', f'--topology={topology}', f'--config.batch_size={4 * images}']
    if 'tokenizer' in programs:
        words += ['--dall_e', '--config.tokenizer.precision=bfloat16']
    result = planned(tmp_path, *words, timeout=1800)['programs']
    found = {name: program['cycles'] for name, program in result.items()}
    assert found.keys() == programs.keys()
    assert all(found[name] < 1.05 * cycles for name, cycles in programs.items()), found


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_kernels_by_their_schedules_against_xla(topology):
    """A plain product as a kernel: never less than the matrix units and the memory take, and a
    tenth more at most. XLA's own estimate of the same product stands beside it."""
    on, chip = Tpu(topology), CHIPS[topology.partition(':')[0]]
    sharding = jax.sharding.SingleDeviceSharding(on.devices(1)[0])

    def cycles(rows, inner, columns):
        shapes = (rows, inner), (inner, columns)
        x, y = (jax.ShapeDtypeStruct(shape, 'bfloat16', sharding=sharding) for shape in shapes)
        compiled = jax.jit(jnp.matmul).lower(x, y).compile().as_text()
        traced = jax.jit(product_kernel).trace(*(jnp.zeros(shape, 'bfloat16') for shape in shapes))
        (kernel,) = (one for one, _ in jaxprs.equations(traced.jaxpr))
        return estimate(compiled, 1).cost, kernel_cycles(kernel, topology)

    for rows, inner, columns in ((12_288, 768, 3072), (12_288, 3072, 768), (12_288, 1024, 4096)):
        by_xla, by_schedule = cycles(rows, inner, columns)
        units = 2 * rows * inner * columns / chip.flops_per_cycle
        moved = 2 * (rows * inner + inner * columns + rows * columns)
        memory = moved * chip.hertz / chip.bytes_per_second
        print(
            f'{topology} {rows} x {inner} x {columns}: the matrix units take {units:,.0f} cycles, '
            f"the memory {memory:,.0f}; XLA's own {by_xla:,.0f}, a kernel {by_schedule:,.0f}"
        )
        assert max(units, memory) <= by_schedule < 1.1 * max(units, memory)


@pytest.fixture
def traced_for(topology, monkeypatch):
    """The chips of a topology."""
    monkeypatch.setattr(kernels, 'target_kind', lambda: f'TPU {topology.partition(":")[0]}')
    monkeypatch.setattr(kernels, 'target_platform', lambda: 'tpu')


@pytest.mark.parametrize('tokens', [197, 577, 640])
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_attention_compiles_for_each_chip(topology, tokens, traced_for):
    """Up to the most tokens that its kernels take, forward and backward."""
    columns = like(8, 768, tokens, dtype='bfloat16')
    arguments = columns, columns, columns, like(768), like(12, tokens, tokens)
    found = kernels_of(fused_attention.attend_by_kernel, arguments, topology)
    assert found == {'attention_forward', 'attention_backward'}


@pytest.mark.parametrize(('tokens', 'width'), [(197, 1024), (577, 1024), (640, 768)])
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_a_block_compiles_for_each_chip(topology, tokens, width, traced_for, monkeypatch):
    """Likewise what stands beside attention, where its parameters fit on the chip."""
    if why := projections.projections_hindrance('auto', 'bfloat16', tokens, width, width // 64):
        pytest.skip(why)
    monkeypatch.setattr(kernels, 'on_each_device', lambda run, *_: run)
    keep, vector, matrix, hidden = like(8), like(width), like(width, width), like(4 * width)

    def block(x, vector, matrix, keep, hidden, wide):
        norm = vector, vector
        x, read, *_ = projections.queries_keys_values(x, *norm, [matrix] * 3, 1e-6)
        x = projections.add_read(x, read, keep, matrix, vector)
        return mlp_branch(x, keep, *norm, wide, hidden, wide.T, vector, 1e-6)

    x, wide = like(8, tokens, width, dtype='bfloat16'), like(width, 4 * width)
    arguments = x, vector, matrix, keep, hidden, wide
    found = kernels_of(block, arguments, topology)
    parts, ways = ('projections', 'out', 'mlp'), ('forward', 'backward')
    assert found == {f'{part}_{way}' for part in parts for way in ways}


def like(*shape, dtype='float32'):
    return jax.ShapeDtypeStruct(shape, dtype)


def kernels_of(function, arguments, topology) -> set[str]:
    """The names of those that it runs, forward and backward; each compiles for the chip."""

    def forward_and_backward(*arguments):
        result, back = jax.vjp(function, *arguments)
        return result, back(result)

    traced = jax.jit(forward_and_backward).trace(*arguments)
    found = {
        one.params['name']: kernel_cycles(one, topology)
        for one, _ in jaxprs.equations(traced.jaxpr)
        if one.primitive.name == 'pallas_call'
    }
    print(f'{topology}: {found}')
    return set(found)


def product_kernel(x, y, rows=512):
    def kernel(x, y, result):
        product = jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)
        result[...] = product.astype(result.dtype)

    split = lambda width: pl.BlockSpec((rows, width), lambda step: (step, 0))
    return pl.pallas_call(
        kernel,
        grid=(len(x) // rows,),
        in_specs=[split(x.shape[1]), pl.BlockSpec(y.shape, lambda step: (0, 0))],
        out_specs=split(y.shape[1]),
        out_shape=jax.ShapeDtypeStruct((len(x), y.shape[1]), x.dtype),
        name='product',
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',), vmem_limit_bytes=60 * 2**20
        ),
    )(x, y)
