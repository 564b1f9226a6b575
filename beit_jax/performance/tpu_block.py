"""Where the time of a block goes on a TPU: each operation of its forward and backward pass beside
what the matrix units and the memory of the chip take for it at least. Needs libtpu, and no TPU.

    python -m beit_jax.performance.tpu_block --topology=v6e:2x2 --size=base --images=64
"""

import argparse
import collections
import functools
import os
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.machines.tpus import CHIPS
from beit_jax.models.encoder import EncoderConfig, make_blocks
from beit_jax.models.initializers import TruncatedNormal
from beit_jax.performance import hlo
from beit_jax.performance.gpu_estimate import FREE, products
from beit_jax.performance.tpu_estimate import BY_SCHEDULE, Tpu, cycles_of
from beit_jax.train.sharding import AXES, on_mesh, replicated

_GRID = 14, 14
# an array and its layout, in which S(1) says that it lies on the chip
_PLACED = re.compile(r'\b(?:pred|[subf]+\d+)\[[\d,]*\](?:\{[^}]*\})?')
_FREE = FREE | {'custom-call'}  # kernels count apart


def compiled_block(config: EncoderConfig, images: int, device) -> tuple:
    """(the text of the program of a block, forward and backward, what was traced)."""
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.sharding.Mesh(np.reshape([device], (1,) * len(AXES)), AXES, axis_types=auto)
    initial = TruncatedNormal(config.init_std, config.init_std)

    def make():
        options = {'dtype': jnp.bfloat16, 'rngs': nnx.Rngs(0)}
        return make_blocks(config, _GRID, range(1), initial, **options)['00']

    graphdef, params = nnx.split(nnx.eval_shape(make))

    def forward_and_backward(params, x_BND, bias_HNN, keep_2B, gradient_BND):
        block = lambda params, *arrays: nnx.merge(graphdef, params)(*arrays, keep_2B)
        result_BND, back = jax.vjp(block, params, x_BND, bias_HNN)
        return result_BND, back(gradient_BND)

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=replicated(mesh))

    tokens = 1 + _GRID[0] * _GRID[1]
    x_BND = shape(images, tokens, config.width, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda leaf: shape(*leaf.shape), params)
    arrays = params, x_BND, shape(config.heads, tokens, tokens), shape(2, images), x_BND
    traced = on_mesh(mesh, jax.jit(forward_and_backward).trace)(*arrays)
    return traced.lower().compile().as_text(), traced


def operations(text: str, chip) -> dict[str, np.ndarray]:
    """{operation -> result: cycles of the compiler, of the products at the peak, of the bytes at
    the published bandwidth}, of all but kernels."""
    found, (bodies, entry) = collections.defaultdict(lambda: np.zeros(3)), hlo.split(text)
    computation = functools.cache(lambda name: hlo.instructions(bodies[name]))
    for body, line, times in hlo.executed(bodies, entry, 1, ('call', 'conditional')):
        each = hlo.instruction(line)
        if each is None or each.opcode in _FREE or each.opcode.endswith('-done'):
            continue
        known = computation(body)
        shapes = [each.shape, *(known[name].shape for name in each.operands if name in known)]
        moved = sum(map(_moved, shapes)) * chip.hertz / chip.bytes_per_second
        units = products(each, known, computation)[1] / chip.flops_per_cycle
        made = re.sub(r'\{[^}]*\}', '', each.shape)[:44]
        found[f'{hlo.operation(line)} -> {made}'] += times * np.array(
            [cycles_of(line), units, moved]
        )
    return found


def _moved(shape: str) -> float:
    """Bytes of the arrays of a shape that lie in the chip's memory."""
    placed = (part for part in _PLACED.findall(shape) if 'S(1)' not in part)
    return sum(hlo.array_bytes(*array) for part in placed for array in hlo.arrays(part))


def run(options) -> None:
    target, kind = Tpu(options.topology), options.topology.partition(':')[0]
    config = EncoderConfig(size=options.size, projections=options.projections, mlp=options.mlp)
    text, traced = compiled_block(config, options.images, target.devices(1)[0])
    whole, rows = target.estimate(text, traced, 1), operations(text, CHIPS[kind])
    print('| operation | cycles | products | memory | bound by |\n|-|-|-|-|-|')
    for name, (cycles, units, moved) in sorted(rows.items(), key=lambda row: -row[1][0]):
        if cycles >= options.least:
            bound = 'the matrix units' if units > moved else 'memory'
            print(f'| `{name}` | {cycles:,.0f} | {units:,.0f} | {moved:,.0f} | {bound} |')
    for name, cycles in whole.operations.items():
        if name.endswith(BY_SCHEDULE):
            print(f'| {name} | {cycles:,} | | | |')
    rows = [row for row in rows.values() if row[0]]
    cycles, units, _ = sum(rows)
    least = sum(max(units, moved) for _, units, moved in rows)
    print(
        f'\n{whole.cost:,.0f} cycles; without kernels {cycles:,.0f}, of which products at the peak '
        f'{units:,.0f}; each operation at the least that the chip takes for it: {least:,.0f}'
    )


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('--topology', default='v6e:2x2')
    parser.add_argument('--size', default='base', help='of the encoder')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--projections', default='auto', help='auto, plain or pallas')
    parser.add_argument('--mlp', default='auto', help='likewise')
    parser.add_argument('--least', type=int, default=10_000, help='cycles of a row of the table')
    return parser


if __name__ == '__main__':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run(_arguments().parse_args())
