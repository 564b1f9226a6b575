"""Which numbers a setting takes: its type says so, `mapping` holds every number against it."""

import dataclasses
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; a round bracket in `ends` leaves that end out. NaN is in
    none."""

    low: float
    high: float
    ends: str = '[]'

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (number == self.low and self.ends[0] == '[')
        below = number < self.high or (number == self.high and self.ends[1] == ']')
        return above and below

    def __str__(self):
        return f'{self.ends[0]}{self.low}, {self.high}{self.ends[1]}'


# What a type without an interval stands for. Devices count in int32; a million is more than any
# rate, weight or time here can mean.
INT32 = 2**31 - 1
USUAL = {int: Interval(0, INT32), float: Interval(0, 1_000_000)}

Count = Annotated[int, Interval(1, INT32)]
Width = Annotated[int, Interval(1, 2**14)]  # of a layer
Side = Annotated[int, Interval(1, 2**14)]  # of a picture, in pixels
Sides = Side | tuple[Side, Side]  # of a square, or height and width
Positive = Annotated[float, Interval(0, 1_000_000, '(]')]
Share = Annotated[float, Interval(0, 1)]
ShareBelow1 = Annotated[float, Interval(0, 1, '[)')]
Shown = Annotated[int, Interval(0, 256)]  # pictures in one
PositiveShare = Annotated[float, Interval(0, 1, '(]')]
Seed = Annotated[int, Interval(-(2**31), 2**32 - 1)]  # JAX takes 32 bits of it
