"""The optimised text of a program (`compiled.as_text()`), read: which instructions run how often,
the sizes of their arrays, what devices receive from one another."""

from collections.abc import Iterator
import dataclasses
import math
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$')
_LOOP = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r' constant\((\d+)\)')
_CALLED = re.compile(r'(?:to_apply|calls|branch_computations)=\{?%?([\w.\-]+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_COLLECTIVE = re.compile(
    r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)
_ARRAY = re.compile(r'\b(pred|[subf]+\d+)(?:e\dm\d\w*)?\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(')
_OPERAND = re.compile(r'%([\w.\-]+)')
# groups of devices: [how many,of how many], {{the first,...},...}, or a mesh and the axes of it
# along which a group lies
_GROUPS = re.compile(
    r'replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[([^\]]*)\] \{([^}]*)\})'
)
# what a device receives of an array of one byte that k devices have in the end (all-reduce,
# all-gather) or had before, by the ring algorithm
_RECEIVED = {
    'all-reduce': lambda k: 2 * (k - 1) / k,
    'all-gather': lambda k: (k - 1) / k,
    'reduce-scatter': lambda k: k - 1,
    'all-to-all': lambda k: (k - 1) / k,
    'collective-permute': lambda k: 1,
}


def split(text: str) -> tuple[dict[str, list[str]], str]:
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


def executed(bodies: dict[str, list[str]], entry: str, trips: int, into) -> Iterator[tuple]:
    """(computation, line, how often it runs) for all that is not a loop. A loop of unknown length
    counts `trips` times; `into`: the opcodes whose computations are walked too."""

    def walk(body, times):
        for line in bodies.get(body, ()):
            if loop := _LOOP.search(line):
                yield from walk(
                    loop[2], times * (_known_trips(line, bodies.get(loop[1], ())) or trips)
                )
                continue
            yield body, line, times
            if any(f' {opcode}(' in line for opcode in into):
                for callee in called(line):
                    yield from walk(callee, times)

    yield from walk(entry, 1)


def called(line: str) -> list[str]:
    """The computations that an instruction runs."""
    return _CALLED.findall(line)


def _known_trips(line: str, condition: list[str]) -> int:
    """Of a loop that says how long it is, or that counts up to a constant; else 0."""
    if known := _TRIPS.search(line):
        return int(known[1])
    limits = [int(limit[1]) for limit in map(_LIMIT.search, condition) if limit]
    counts_up = any('ROOT' in line and 'direction=LT' in line for line in condition)
    return limits[0] if len(limits) == 1 and counts_up else 0


def operation(line: str) -> str:
    """What the instruction does in the model: its op_name, digits folded."""
    found = _NAME.search(line)
    return re.sub(r'\d+', '#', found[1] if found else line.partition(' = ')[0].strip())


def received(line: str) -> tuple[str, int] | None:
    """(kind of collective, bytes that a device receives), of the arrays that a collective makes."""
    kind = _COLLECTIVE.search(line)
    if not kind:
        return None
    made = arrays(line[: kind.start()])
    # the -start of an asynchronous one makes (operands, results, marks of the transfer)
    if kind[2] and kind[1] != 'all-reduce':
        made = [array for array in made if array != ('u32', ())]
        made = made[len(made) // 2 :]
    size = sum(array_bytes(*array) for array in made)
    return kind[1], round(size * _RECEIVED[kind[1]](_group_size(line)))


def _group_size(line: str) -> int:
    """How many devices take part in a collective; 2 where it has no groups (a permutation)."""
    groups = _GROUPS.search(line)
    if not groups:
        return 2
    if groups[3]:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[3]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups[4])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return int(groups[1]) if groups[1] else len(groups[2].split(','))


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """'(bf16[19,251]{1,0}, s8[7])' -> [('bf16', (19, 251)), ('s8', (7,))]."""
    return [
        (dtype, tuple(map(int, filter(None, sizes.split(',')))))
        for dtype, sizes in _ARRAY.findall(shape)
    ]


def elements(shape: str) -> list[str]:
    """'((f32[7], s8[5]), f32[3])' -> ['(f32[7], s8[5])', 'f32[3]']."""
    parts, depth = [''], 0
    for letter in shape[1:-1]:
        depth += {'(': 1, '{': 1, '[': 1, ')': -1, '}': -1, ']': -1}.get(letter, 0)
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def array_bytes(dtype: str, shape: tuple[int, ...]) -> float:
    item = 1 if dtype == 'pred' else int(re.sub(r'\D+', '', dtype)) / 8
    return math.prod(shape) * item


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # of its result, as `arrays` reads it
    opcode: str
    operands: tuple[str, ...]  # their names
    text: str


def instruction(line: str) -> Instruction | None:
    """What a line of a computation says; None where it is none."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    depth, end = 1, found.end()
    while depth and end < len(line):
        depth += {'(': 1, ')': -1}.get(line[end], 0)
        end += 1
    operands = _OPERAND.findall(line[found.end() : end])
    return Instruction(found[1], found[2], found[3], tuple(operands), line)


def instructions(lines: list[str]) -> dict[str, Instruction]:
    """Those of a computation, by their names."""
    found = filter(None, map(instruction, lines))
    return {each.name: each for each in found}
