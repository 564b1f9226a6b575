"""Bytes and JSON with something wrong, at random: what bad luck and bad people make of a file."""

import json
import struct

STRANGE = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e30,
    '',
    'x',
    '7',
    'é' * 9999,
    [],
    {},
    [None],
    [[]],
    {'²': 1},
]
# what json.dumps does not write
RAW = [
    'Infinity',
    '-Infinity',
    'NaN',
    '1e999',
    '9' * 5000,
    '[' * 100_000,
    '{"a":' * 9999,
    '[' * 500 + ']' * 500,
    '"\\ud800"',
    '9223372036854775808',
    '-9223372036854775809',
    '1000000000',
    '[' + '{},' * 99_999 + '{}]',
]


def damage(data, rng):
    """Bytes changed, cut off, put in, repeated, moved, or all of them others."""
    data, kind = bytearray(data), rng.integers(9)
    place, other = (int(rng.integers(len(data) + 1)) for _ in range(2))
    low, high = min(place, other), max(place, other)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 9)) if data else ():
            data[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = rng.bytes(rng.integers(1, 99))
    elif kind == 3:
        del data[low:high]
    elif kind == 4:
        data[place:place] = data[low : low + 999]
    elif kind == 5:
        data[place : place + 8] = struct.pack('<q', rng.choice([0, -1, 2**31, 2**40, 2**62]))
    elif kind == 6:
        data[place : place + 1] = rng.choice(
            [b'0', b'9' * 30, b'-', b'"', b'{', b']', b'\n', b'\0']
        )
    elif kind == 7:
        data = rng.bytes(rng.integers(0, 999))
    else:
        data = data[:place] + data
    return bytes(data)


def damage_json(content, rng):
    """One entry of a JSON is another, is gone, or is put in the place of another one."""
    places, waiting = [], [content]
    while waiting:
        group = waiting.pop()
        for key in list(group) if isinstance(group, dict) else range(len(group)):
            places.append((group, key))
            if isinstance(group[key], dict | list):
                waiting.append(group[key])
    (group, key), (others, other) = (places[rng.integers(len(places))] for _ in range(2))
    kind, mark = rng.integers(5), '@@'
    if kind < 2:
        group[key] = mark
    elif kind == 2:
        group[key] = STRANGE[rng.integers(len(STRANGE))]
    elif kind == 3:
        group[key] = json.loads(json.dumps(others[other]))
    elif isinstance(group, dict):
        group[str(rng.choice(['', 'type', 'é', '99999999999', 'x' * 300]))] = group.pop(key)
    else:
        group *= 3
    return json.dumps(content).replace(f'"{mark}"', RAW[rng.integers(len(RAW))]).encode()


def damaged(data, rng):
    """The bytes of a file with one thing wrong, or several."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and content and rng.random() < 0.7:
            try:
                data = damage_json(content, rng)
                continue
            except RecursionError:  # it is deeper than json.dumps goes
                pass
        data = damage(data, rng)
    return data
