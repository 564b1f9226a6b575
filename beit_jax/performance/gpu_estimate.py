"""How long a program takes on a GPU at least, by a roofline over its optimised text, in which XLA
has no estimate that could be added up. Needs XLA's plugin for CUDA, and no GPU.

Each instruction takes as long as its arrays pass through the memory, or as its products take,
whichever is longer; what GPUs receive from one another is added. Launches, caches and what runs
beside one another do not count. `gpus.py` has the rates.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import importlib.util
import math
import os
import re

from beit_jax.errors import check
from beit_jax.machines.gpus import FACTORS, GPUS, Gpu, target_config
from beit_jax.performance import hlo
from beit_jax.performance.estimate import Estimate

MOST = 8  # GPUs that NVLink joins
EXAMPLES = 'a100:8, b200:8, h100:1, h100:8, h200:1'
_FRACTION = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
_WALKED = ('call', 'conditional', 'async-start')
# that move nothing, or whose parts count
FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id',
    'replica-id', 'opt-barrier', 'call', 'conditional', 'async-start', 'async-update',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = re.compile(r'"?lhs_contracting_(?:dimensions|dims)"?[:=][\[{]([^\]}]*)[\]}]')
_BATCHED = re.compile(r'"?lhs_batch_(?:dimensions|dims)"?[:=][\[{]"?\d')
_LABELS = re.compile(r'dim_labels=\w+_(\w+)->\w+')
_LOGITS = re.compile(r'"intermediate_tensor_shape".*?"dimensions": ?\[([^\]]*)\]')
_FULL = re.compile(r'operand_precision"?[=:] ?[\[{]"?highest', re.IGNORECASE)
_TILE = 128  # tokens, of cuDNN's attention


class GpuTarget:
    """The `Target` of a topology, for example h100:8."""

    device, unit, units_per_second = 'GPU', 'nanoseconds', 1e9
    figures = (
        'A roofline, per GPU, over the program that XLA compiles for it: bytes, products, NVLink; '
        'no launches.\nNothing ran on a GPU, where XLA and cuDNN may choose other kernels.'
    )
    transfers = "at NVLink's published rate, and are in it as if none overlaps"
    more_memory = f'; {_FRACTION[0]}=0.92 gives JAX more than 0.75 of a GPU'

    def __init__(self, topology: str):
        kind, _, number = topology.partition(':')
        check(
            number.isdecimal() and 1 <= int(number) <= MOST,
            f'--topology={topology}: give {kind}:N with the number of GPUs of one host, 1 to '
            f'{MOST}, for example {kind}:8.',
        )
        self._gpu, self._number = GPUS[kind], int(number)
        self.memory = _fraction() * self._gpu.memory
        self.flops_per_second = self._gpu.bfloat16
        self.link_bytes_per_second = self._gpu.nvlink

    def devices(self, slices: int) -> Sequence:
        from jax.experimental import topologies

        check(
            any(map(importlib.util.find_spec, ('jax_cuda13_plugin', 'jax_cuda12_plugin'))),
            'planning for a GPU takes its compiler: pip install "jax[cuda13]" (6 GB: best in an '
            'environment of its own).',
        )
        check(slices == 1, f'config.mesh.slice={slices}: the GPUs of one host are one slice.')
        return topologies.get_topology_desc(
            platform='cuda',
            topology=f'1x1x{self._number}',  # partitions x hosts x GPUs
            target_config=target_config(self._gpu),
        ).devices

    def estimate(self, text: str, traced, trips: int) -> Estimate:
        return roofline(text, self._gpu, trips)


def _fraction() -> float:
    """Of a GPU's memory, that JAX takes."""
    for name in _FRACTION:
        if given := os.environ.get(name):
            number = re.fullmatch(r'0?\.\d+|1(\.0*)?', given)
            check(bool(number), f'{name}={given}: give a share of the memory, for example 0.92.')
            return float(given)
    return 0.75


def roofline(text: str, gpu: Gpu, trips: int) -> Estimate:
    """Of a program's text, in nanoseconds; a loop of unknown length counts `trips` times."""
    result, (bodies, entry) = Estimate(), hlo.split(text)
    computation = functools.cache(lambda name: hlo.instructions(bodies[name]))
    for body, line, times in hlo.executed(bodies, entry, trips, _WALKED):
        each = hlo.instruction(line)
        if each is None or each.opcode in FREE or each.opcode.endswith('-done'):
            continue
        if received := hlo.received(line):
            kind, size = 'collective', received[1]
            result.received[received[0]] += times * size
            seconds = size / gpu.nvlink
        else:
            each = _started(each)
            kind, flops = products(each, computation(body), computation)
            rate = gpu.product * _rate(each, computation(body), gpu)
            moved = _moved(each, computation(body), computation)
            result.flops += times * flops
            seconds = max(flops / rate, moved / (gpu.copy * gpu.bandwidth))
        cost = 1e9 * FACTORS[kind] * seconds
        result.cost += times * cost
        result.kinds[kind] += times * cost
        result.counts[kind] += times
        result.operations[f'{hlo.operation(line)} {_largest(each)}'] += times * cost
        result.workspace = max(result.workspace, _workspace(each))
    return result


def _started(each):
    """What an instruction starts (`fusion-start`, of operands, results and marks), else itself."""
    if not each.opcode.endswith('-start'):
        return each
    made = hlo.elements(each.shape)[0 if each.opcode == 'copy-start' else 1]
    return dataclasses.replace(each, opcode=each.opcode.removesuffix('-start'), shape=made)


def products(each, known, computation) -> tuple[str, int]:
    """(kind of operation, floating-point operations of its products)."""
    target = _TARGET.search(each.text)
    target = target[1] if target else ''
    if target.startswith('__cublas') or each.opcode == 'dot':
        (_, made), *_ = hlo.arrays(each.shape)
        (_, left), *_ = hlo.arrays(known[each.operands[0]].shape)
        axes = map(int, re.findall(r'\d+', _CONTRACTED.search(each.text)[1]))
        kind = 'batched product' if _BATCHED.search(each.text) else 'product'
        return kind, 2 * math.prod(made) * math.prod(left[axis] for axis in axes)
    if target.startswith('__cudnn$conv') or each.opcode == 'convolution':
        return 'convolution', _convolution(each, known, target)
    if target.startswith('__cudnn$fmha'):
        logits = math.prod(map(int, re.findall(r'\d+', _LOGITS.search(each.text)[1])))
        (_, queries), *_ = hlo.arrays(known[each.operands[0]].shape)
        # queries x keys and weights x values; backward these two again and both gradients of each
        return 'attention', 2 * logits * queries[-1] * (5 if target.endswith('Backward') else 2)
    if each.opcode != 'fusion':
        return 'other', 0
    inner = computation(hlo.called(each.text)[0])
    parts = [products(part, inner, computation) for part in inner.values()]
    kind = max(parts, key=lambda part: part[1])[0] if parts else 'other'
    flops = sum(part[1] for part in parts)
    return (kind if flops else 'other'), flops


def _convolution(each, known, target: str) -> int:
    """A product for each number of the result of the forward pass, of the window and of the inputs;
    both gradients take as many."""
    arrays = [hlo.arrays(known[name].shape)[0][1] for name in each.operands]
    made = hlo.arrays(each.shape)[0][1]
    kernel, result = {
        '__cudnn$convBackwardInput': (arrays[1], arrays[0]),
        '__cudnn$convBackwardFilter': (made, arrays[1]),
    }.get(target, (arrays[1], made))
    outputs = kernel[_LABELS.search(each.text)[1].index('o')]
    return 2 * math.prod(result) * math.prod(kernel) // outputs


def _rate(each, known, gpu: Gpu) -> float:
    """FLOP/s of the products of an instruction, by the type of what it is given: TF32 for float32,
    unless all digits are asked for."""
    types = {array[0] for name in each.operands[:2] for array in hlo.arrays(known[name].shape)}
    if types & {'bf16', 'f16'}:
        return gpu.bfloat16
    return gpu.float32 if _FULL.search(each.text) else gpu.bfloat16 / 2


def _moved(each, known, computation) -> float:
    """Bytes that an instruction reads and writes; of what a fusion takes slices of, the slices."""
    made = [array for array in hlo.arrays(each.shape) if not _scratch(each, array)]
    wrote = sum(hlo.array_bytes(*array) for array in made)
    sizes = {name: _bytes(known[name].shape) for name in each.operands}
    if each.opcode in _SLICES:
        return 2 * wrote
    if each.opcode == 'dynamic-update-slice':
        return 2 * sizes[each.operands[1]]
    if each.opcode != 'fusion':
        return wrote + sum(sizes.values())
    inner, read = computation(hlo.called(each.text)[0]), 0
    for part in inner.values():
        if part.opcode != 'parameter':
            continue
        whole, uses = _bytes(part.shape), list(_uses(part.name, inner))
        sliced = all(
            user.opcode in (*_SLICES, 'dynamic-update-slice') and user.operands[0] == name
            for user, name in uses
        )
        if not sliced:
            read += whole
            continue
        slices = [user.shape for user, _ in uses if user.opcode in _SLICES]
        read += min(whole, sum(map(_bytes, slices)))
        # an update is written in place of what was there
        updates = [user for user, _ in uses if user.opcode == 'dynamic-update-slice']
        wrote -= sum(whole - _bytes(inner[user.operands[1]].shape) for user in updates)
    return max(wrote, 0) + read


def _uses(name: str, inner) -> Iterator[tuple]:
    """(instruction inside a fusion that takes an array, the name by which it does)."""
    for user in inner.values():
        if name in user.operands:
            if user.opcode == 'bitcast':
                yield from _uses(user.name, inner)
            else:
                yield user, name


def _bytes(shape: str) -> float:
    return sum(hlo.array_bytes(*array) for array in hlo.arrays(shape))


def _scratch(each, array) -> bool:
    """The workspace that a library's function has among its results."""
    of_library = each.opcode == 'custom-call' or 'kind=kCustom' in each.text
    return of_library and array[0] in ('s8', 'u8') and len(array[1]) == 1


def _workspace(each) -> int:
    """Bytes that cuDNN's attention takes besides for the gradient of a bias: that of all logits, in
    tiles, and a float32 a query. So cuDNN 9.28 says for 198 and 578 tokens, which tiles of 64 would
    explain as well."""
    if '__cudnn$fmha' not in each.text or 'Backward"' not in each.text:
        return 0
    made = [array for array in hlo.arrays(each.shape) if not _scratch(each, array)]
    if len(made) < 4:
        return 0
    images, heads, queries, keys = map(int, re.findall(r'\d+', _LOGITS.search(each.text)[1]))
    pad = lambda tokens: -(-tokens // _TILE) * _TILE
    return images * heads * (2 * pad(queries) * pad(keys) + 4 * queries)


def _largest(each) -> str:
    """Type and shape of the largest array that it makes."""
    made = [array for array in hlo.arrays(each.shape) if not _scratch(each, array)]
    found = max(made, key=lambda array: hlo.array_bytes(*array), default=None)
    return f'-> {found[0]}[{",".join(map(str, found[1]))}]' if found else ''
