"""Labels that are no single class: some classes of many, or numbers, out of the columns of a
table. Shape legend: N examples, C classes, or numbers of an example."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import re
from typing import NamedTuple

import numpy as np

from beit_jax.errors import RequestError, check, shown

USUAL = ('label', 'labels', 'cls')  # columns
_SEPARATORS = re.compile(r'[|;,]')
_LARGEST = float(np.finfo(np.float32).max)  # no number is NaN, or infinite
_TRUE, _FALSE = ('1', '1.0', 'true'), ('0', '0.0', 'false')


class Targets(NamedTuple):
    """Attributes:
    names: of the classes, or of the numbers.
    values: uint8 [N, C], 1 where an example is of a class; or float32 [N, C].
    """

    names: tuple[str, ...]
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    def label(self, index: int) -> np.ndarray:
        """float32 [C]."""
        return self.values[index].astype(np.float32)

    def digest(self) -> str:
        return hashlib.sha256('\n'.join(self.names).encode() + self.values.tobytes()).hexdigest()


def columns_of(field: str, there: Sequence[str], others: Sequence[str], where: str) -> list[str]:
    """The columns that a label stands in: those that `field` names, with commas between them, else
    the one that has a usual name, else all but `others`.

    Raises:
      RequestError: a column that is not `there`, or none is left.
    """
    named = [name.strip() for name in field.split(',')] if field else []
    found = named or [name for name in USUAL if name in there][:1]
    found = found or [name for name in there if name not in others]
    missing = [name for name in found if name not in there]
    check(
        bool(found) and not missing,
        f'{where} has no column {missing[0] if missing else USUAL[0]!r}: set '
        f'config.data.label_field to one or several of {", ".join(there)}.',
    )
    return found


def read_targets(
    kind: str,
    columns: Mapping[str, Sequence],
    known: Sequence[str] | None,
    numbered: Sequence[str],
    where: str,
    row: Callable[[int], str],
) -> Targets:
    """The labels of all examples.

    Args:
      kind: 'classes': a column of names (a list, or a text with | ; or , between them; none: of no
        class) or of lists of numbers of classes, or of 0 and 1 for each class; or a column of 0 and
        1 for each class. 'numbers': a column for each, or one of lists.
      columns: the cells of each.
      known: the names that the training examples have; None: these are they.
      numbered: the names of classes that are stored as their numbers; () where nobody says.
      where: what messages begin with; row: what they call an example.

    Raises:
      RequestError: a cell that is nothing of that, a class that is not among the `known` ones.
    """
    read = _Cells(where, row)
    if kind == 'numbers':
        names, values = read.numbers(columns)
    elif len(columns) > 1:
        names, values = tuple(columns), read.marks(columns)
    else:
        ((column, cells),) = columns.items()
        names, values = read.classes(column, cells, known, numbered)
    if known is not None and names != tuple(known):
        check(
            sorted(names) == sorted(known),
            f'{where} has {", ".join(names[:5])}; the training images have '
            f'{", ".join(known[:5])}: give columns of the same names.',
        )
        names, values = tuple(known), values[:, [names.index(name) for name in known]]
    check(
        known is not None or kind == 'numbers' or not values.all(),
        f'{where}: every example is of all {len(names)} classes, so there is nothing to learn: '
        'name other columns by config.data.label_field.',
    )
    return Targets(names, values)


class _Cells(NamedTuple):
    where: str
    row: Callable[[int], str]

    def error(self, index: int, column: str, cell, wanted: str) -> RequestError:
        return RequestError(
            f'{self.where}, {self.row(index)}: the column {column!r} holds {str(cell)[:40]!r}, '
            f'{wanted}: repair it, or set config.data.label_field to other columns.'
        )

    def numbers(self, columns):
        """(names, float32 [N, C])."""
        names, parts = [], []
        for column, cells in columns.items():
            lists = bool(cells) and isinstance(cells[0], list)
            count = len(cells[0]) if lists else 1
            values, wanted = np.empty((len(cells), count), np.float32), f'not {count} numbers'
            for index, cell in enumerate(cells):
                try:
                    row = [float(each) for each in (cell if lists else [cell])]
                except (TypeError, ValueError) as error:
                    raise self.error(index, column, cell, wanted) from error
                if len(row) != count or not all(abs(each) <= _LARGEST for each in row):
                    raise self.error(index, column, cell, wanted)
                values[index] = row
            names += [f'{column}_{i}' for i in range(count)] if lists else [column]
            parts.append(values)
        return tuple(names), np.concatenate(parts, axis=1)

    def marks(self, columns):
        """uint8 [N, C] of columns of 0 and 1."""
        values = np.zeros((len(next(iter(columns.values()))), len(columns)), np.uint8)
        for place, (column, cells) in enumerate(columns.items()):
            for index, cell in enumerate(cells):
                values[index, place] = self.mark(index, column, cell)
        return values

    def mark(self, index, column, cell):
        text = str(cell).strip().lower()
        if text not in _TRUE + _FALSE:
            raise self.error(index, column, cell, 'neither 0 nor 1')
        return text in _TRUE

    def classes(self, column, cells, known, numbered):
        """(names, uint8 [N, C]) of one column."""
        lists = [cell for cell in cells if isinstance(cell, list)]
        numeric = any(isinstance(each, (int, float)) for cell in lists for each in cell)
        if numeric and _one_for_each(lists, len(cells)):
            names = tuple(known or numbered or map(str, range(len(lists[0]))))
            check(
                len(names) == len(lists[0]),
                f'{self.where}: the column {column!r} has {len(lists[0])} numbers an example, but '
                f'there are {len(names)} classes.',
            )
            rows = {f'{column}[{i}]': [cell[i] for cell in cells] for i in range(len(names))}
            return names, self.marks(rows)
        found = [self.some(index, column, cell) for index, cell in enumerate(cells)]
        if numeric:
            most = max((each for row in found for each in row), default=0)
            names = tuple(known or numbered or map(str, range(most + 1)))
            place = {number: number for number in range(len(names))}
        else:
            names = tuple(known or sorted({each for row in found for each in row}))
            place = {name: number for number, name in enumerate(names)}
        values = np.zeros((len(cells), len(names)), np.uint8)
        for index, row in enumerate(found):
            for each in row:
                if each not in place:
                    there = f'no class: there are {len(names)} ({", ".join(names[:3])}, ...)'
                    raise self.error(index, column, each, there)
                values[index, place[each]] = 1
        return names, values

    def some(self, index, column, cell):
        """The names or numbers in a cell."""
        if isinstance(cell, (bool, int, float)):
            raise self.error(
                index, column, cell, 'one class and no list (config.data.labels=class is for that)'
            )
        if cell is None:
            return []
        texts = _SEPARATORS.split(cell) if isinstance(cell, str) else cell
        if not all(isinstance(each, (str, int)) for each in texts):
            raise self.error(index, column, cell, 'no names or numbers of classes')
        texts = [shown(each.strip()) if isinstance(each, str) else each for each in texts]
        if len({isinstance(each, str) for each in texts}) > 1:
            raise self.error(index, column, cell, 'names and numbers of classes')
        return [each for each in texts if each != '']


def _one_for_each(lists, count: int) -> bool:
    """Whether lists hold 0 or 1 for each class, and not the numbers of those that there are: they
    are equally long, and some repeats a number, or none is a whole one."""
    if len(lists) < count or len({len(cell) for cell in lists}) > 1 or not len(lists[0]):
        return False
    if not all(each in (0, 1) for cell in lists for each in cell):
        return False
    whole = all(type(each) is int for cell in lists for each in cell)
    return not whole or any(len(set(cell)) < len(cell) for cell in lists)
