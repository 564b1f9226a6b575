"""What is estimated of a program, on a TPU by its compiler, on a GPU by a roofline: the form in
which `plan` takes it."""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Protocol


@dataclasses.dataclass
class Estimate:
    """Of one run of a program on one device."""

    # in the unit of its target
    cost: float = 0
    # cost by what is done, digits folded
    operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # bytes by kind of collective
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # where the target knows them: cost and number by kind of operation; floating-point operations
    # of all products, with what is computed anew
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    flops: int = 0
    # bytes that the program takes besides what the compiler says
    workspace: int = 0


class Target(Protocol):
    """Devices of a kind that programs are compiled for."""

    device: str  # what one is called
    unit: str  # of cost
    units_per_second: float
    flops_per_second: float  # the peak in bfloat16, by the maker's figures
    memory: float  # bytes that a program may take
    link_bytes_per_second: float  # that a device receives from the others
    # what users are told: what the figures are, how transfers count, what to do about memory
    figures: str
    transfers: str
    more_memory: str

    def devices(self, slices: int) -> Sequence:
        """Devices to compile for, of so many slices.

        Raises:
          RequestError: there are no such, or the compiler is not installed.
        """

    def estimate(self, text: str, traced, trips: int) -> Estimate:
        """Of a compiled program's text and of what was traced; a loop of unknown length counts
        `trips` times."""
