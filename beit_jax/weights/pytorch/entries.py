"""Checked values out of JSON that others wrote: numbers in a range, lists, groups, names.

All raise RequestError where an entry is of another type or out of its range. One that is not there,
or null, is None; an empty group; no names.
"""

from typing import Any

from beit_jax.errors import check


def group(entries: dict, name: str) -> dict:
    value = entries.get(name) or {}
    check(isinstance(value, dict), f'{name} is {shown(value)}, not a group of settings')
    return value


def choice(entries: dict, name: str, allowed: tuple[str, ...]) -> str | None:
    value = entries.get(name)
    check(
        value is None or value in allowed,
        f'{name} is {shown(value)}, not one of {", ".join(allowed)}',
    )
    return value


def number(entries: dict, name: str, low: float, high: float) -> float | None:
    """A number from `low` to `high`."""
    value = entries.get(name)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(
        is_number and low <= value <= high,
        f'{name} is {shown(value)}, not a number from {low:g} to {high:g}',
    )
    return float(value)


def whole(entries: dict, name: str, low: int = 1) -> int | None:
    """A whole number from `low` to a million."""
    value = number(entries, name, low, 1e6)
    if value is None:
        return None
    check(value == int(value), f'{name} is {value}, not a whole number')
    return int(value)


def wholes(entries: dict, name: str, low: int) -> tuple[int, ...] | None:
    """One to eight whole numbers of at least `low`."""
    value = entries.get(name)
    if value is None:
        return None
    message = f'{name} is {shown(value)}, not a few numbers'
    check(isinstance(value, (list, tuple)) and 0 < len(value) <= 8, message)
    numbers = tuple(whole({name: one}, name, low) for one in value)
    check(None not in numbers, message)
    return numbers


def each_channel(entries: dict, name: str, low: float = -1e3) -> tuple[float, ...] | None:
    """A number for each channel, at least `low`."""
    value = entries.get(name)
    if value is None:
        return None
    message = f'{name} is {shown(value)}, not a number for each channel'
    check(isinstance(value, (list, tuple)) and 0 < len(value) <= 1024, message)
    numbers = tuple(number({name: one}, name, low, 1e3) for one in value)
    check(None not in numbers, message)
    return numbers


def labels(value: Any) -> tuple[str, ...]:
    """Names in a list, or in a dict by number.

    Numbers may be left out, as in the 22k classes of the hub: only their order counts.
    """
    if isinstance(value, dict):
        strange = [key for key in value if not key.isdecimal() or len(key) > 9]
        check(not strange, f'the classes have the number {shown(strange)}')
        value = [value[key] for key in sorted(value, key=int)]
    check(
        value is None or isinstance(value, (list, tuple)),
        f'the names of the classes are {shown(value)}',
    )
    return tuple(str(name) for name in value or ())


def shown(value: Any) -> str:
    """A value from a file as a message may show it: on one line, short."""
    return ascii(value)[:80]
