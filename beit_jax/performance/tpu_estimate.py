"""What the TPU's compiler says of a program that it compiled: cycles by operation, and bytes that
chips receive from one another.

It reads the optimised text of the program (`compiled.as_text()`), in which every fusion carries the
compiler's own estimate. Transfers are not in the cycles: they overlap with arithmetic as far as the
compiler finds any.
"""

import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r' constant\((\d+)\)')
_CALLED = re.compile(r'(?:to_apply|calls|branch_computations)=\{?%?([\w.\-]+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_COLLECTIVE = re.compile(
    r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)
_ARRAY = re.compile(r'\b(pred|[subf]+\d+)\[([\d,]*)\]')
# groups of chips: [how many,of how many], {{the first,...},...}, or a mesh and the axes of it along
# which a group lies
_GROUPS = re.compile(
    r'replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[([^\]]*)\] \{([^}]*)\})'
)
# what a chip receives of an array of one byte that k chips have in the end (all-reduce, all-gather)
# or had before, by the ring algorithm
_RECEIVED = {
    'all-reduce': lambda k: 2 * (k - 1) / k,
    'all-gather': lambda k: (k - 1) / k,
    'reduce-scatter': lambda k: k - 1,
    'all-to-all': lambda k: (k - 1) / k,
    'collective-permute': lambda k: 1,
}


@dataclasses.dataclass
class Estimate:
    """Of one run of a program on one chip."""

    cycles: int = 0
    # cycles by name, digits folded
    operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # bytes by kind of collective
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def estimate(text: str, trips: int) -> Estimate:
    """Adds up the estimates in a program; a loop of unknown length counts `trips` times."""
    bodies, entry = _split(text)
    result = Estimate()

    def walk(body, times):
        for line in bodies.get(body, ()):
            if loop := _LOOP.search(line):
                walk(loop[2], times * (_known_trips(line, bodies.get(loop[1], ())) or trips))
                continue
            if cycles := _CYCLES.search(line):
                result.cycles += times * int(cycles[1])
                result.operations[_name(line)] += times * int(cycles[1])
            if kind := _COLLECTIVE.search(line):
                result.received[kind[1]] += times * _bytes_received(kind, line)
            if ' call(' in line or ' conditional(' in line or ' fusion(' in line:
                for callee in _CALLED.findall(line):
                    walk(callee, times)

    walk(entry, 1)
    return result


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """({computation: its lines}, the one that is run)."""
    bodies, name, entry = {}, None, None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _known_trips(line: str, condition: list[str]) -> int:
    """Of a loop that says how long it is, or that counts up to a constant; else 0."""
    if known := _TRIPS.search(line):
        return int(known[1])
    limits = [int(limit[1]) for limit in map(_LIMIT.search, condition) if limit]
    counts_up = any('ROOT' in line and 'direction=LT' in line for line in condition)
    return limits[0] if len(limits) == 1 and counts_up else 0


def _name(line: str) -> str:
    found = _NAME.search(line)
    return re.sub(r'\d+', '#', found[1] if found else line.partition(' = ')[0].strip())


def _bytes_received(kind, line: str) -> int:
    """By a chip, of the arrays that a collective makes."""
    arrays = _ARRAY.findall(line[: kind.start()])
    # the -start of an asynchronous one makes (operands, results, marks of the transfer)
    if kind[2] and kind[1] != 'all-reduce':
        arrays = [array for array in arrays if array != ('u32', '')]
        arrays = arrays[len(arrays) // 2 :]
    size = sum(_array_size(dtype, shape) for dtype, shape in arrays)
    return round(size * _RECEIVED[kind[1]](_group_size(line)))


def _group_size(line: str) -> int:
    """How many chips take part in a collective; 2 where it has no groups (a permutation)."""
    groups = _GROUPS.search(line)
    if not groups:
        return 2
    if groups[3]:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[3]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups[4])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return int(groups[1]) if groups[1] else len(groups[2].split(','))


def _array_size(dtype: str, shape: str) -> float:
    """Bytes; shape: '19,251'."""
    item = 1 if dtype == 'pred' else int(re.sub(r'\D+', '', dtype)) / 8
    return math.prod(map(int, filter(None, shape.split(',')))) * item
