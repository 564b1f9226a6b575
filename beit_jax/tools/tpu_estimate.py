"""What the TPU's compiler says of a program that it compiled: cycles by operation, and bytes that chips receive from one another.

It reads the optimised text of the program (`compiled.as_text()`), in which every fusion carries the compiler's own estimate. Transfers are
not in the cycles: they overlap with arithmetic as far as the compiler finds any.
"""
import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r' while\(.*body=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r'(?:to_apply|calls|branch_computations)=\{?%?([\w.\-]+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_COLLECTIVE = re.compile(r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(')
_ARRAY = re.compile(r'\b(pred|[subf]+\d+)\[([\d,]*)\]')
_GROUPS = re.compile(r'replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\})')
# what a chip receives of an array of one byte that k chips have in the end (all-reduce, all-gather) or had before, by the ring algorithm
_RECEIVED = {'all-reduce': lambda k: 2 * (k - 1) / k, 'all-gather': lambda k: (k - 1) / k, 'reduce-scatter': lambda k: k - 1,
             'all-to-all': lambda k: (k - 1) / k, 'collective-permute': lambda k: 1}


@dataclasses.dataclass
class Estimate:
    """Of one run of a program on one chip."""
    cycles: int = 0
    operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # cycles by name, digits folded
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # bytes by kind of collective


def estimate(text: str, trips: int) -> Estimate:
    """Adds up the compiler's estimates in an optimised program; a loop of unknown length counts `trips` times."""
    bodies, entry = _split(text)
    result = Estimate()

    def walk(body, times):
        for line in bodies.get(body, ()):
            if loop := _LOOP.search(line):
                known = _TRIPS.search(line)
                walk(loop[1], times * (int(known[1]) if known else trips))
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


def _name(line: str) -> str:
    found = _NAME.search(line)
    return re.sub(r'\d+', '#', found[1] if found else line.partition(' = ')[0].strip())


def _bytes_received(kind, line: str) -> int:
    """By a chip, of the arrays that a collective makes."""
    arrays = _ARRAY.findall(line[:kind.start()])
    if kind[2] and len(arrays) > 1:  # the -start of an asynchronous one makes (operands, results)
        arrays = arrays[len(arrays) // 2:]
    size = sum(math.prod(map(int, filter(None, shape.split(',')))) * _item_size(dtype) for dtype, shape in arrays)
    groups = _GROUPS.search(line)
    chips = int(groups[1]) if groups and groups[1] else len(groups[2].split(',')) if groups else 2
    return round(size * _RECEIVED[kind[1]](chips))


def _item_size(dtype: str) -> float:
    return 1 if dtype == 'pred' else int(re.sub(r'\D+', '', dtype)) / 8
