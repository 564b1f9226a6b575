"""What a model says of pictures, one answer each: classes or numbers (in a table too), tokens or
features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import csv
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from tqdm import tqdm

from beit_jax.data.pictures.load import LeaveOut, image_batches
from beit_jax.inference.rows import Rows
from beit_jax.train.workdir.prediction_table import class_name, prediction_header, prediction_row
from beit_jax.weights.models import Model, pad_rows
from beit_jax.whole_files import whole_file

WHAT = ('classes', 'features', 'tokens')
SHOWN = 20  # rows of the table on the terminal


def predict(
    model: Model,
    what: str,
    images: str,
    batch_size: int,
    limit: int | None = None,
    leave_out: LeaveOut | None = None,
    layers: Sequence[int] | None = None,
) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """What the model says of the pictures of a folder, a file or a .npy array, at most `limit`;
    `leave_out` as of `image_batches`, `layers` as of `Model.features`.

    Yields:
      of `batch_size` pictures at a time their names, and arrays: `logits` [B, C] of classes,
        `tokens` [B, P], or `cls` and `mean` [B, L, D] of the features of the layers.

    Raises:
      RequestError: no pictures, or a model without classes or tokens.
    """
    batches = image_batches(
        images, model.image_size, batch_size, limit, model.crop, leave_out, model.reading
    )
    with tqdm(total=limit, unit='image', disable=None, dynamic_ncols=True) as progress:
        for pixels, names in batches:
            made = jax.device_get(_answer(model, what, pad_rows(pixels, batch_size), layers))
            yield names, {name: array[: len(pixels)] for name, array in made.items()}
            progress.update(len(names))


def write_predictions(
    output: Path | None, top: int, threshold: float, model: Model, what: str, *given
) -> tuple[int, 'Table | NumbersTable | None']:
    """Writes what `predict` yields to a .npz, beside `paths` and `labels` (see `folder_labels`), or
    classes or numbers to a .csv (see `Table`); given: see `predict`.

    Returns:
      how many pictures there were, and the table of classes or numbers.
    """
    suffix, classes, paths, table = output.suffix if output else '', model.classes, [], None
    if what == 'classes':
        number = model.architecture.get('num_classes', 0)
        classes = [class_name(classes, i) for i in range(number)]
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(whole_file(output)) if output else None
        rows = Rows(whole.parent) if suffix == '.npz' else None
        file = stack.enter_context(whole.open('w', newline='')) if suffix == '.csv' else None
        if what == 'classes' and model.problem_type == 'regression':
            table = NumbersTable(classes, file)
        elif what == 'classes':
            table = Table(classes, top, model.problem_type, file, threshold)
        for names, arrays in predict(model, what, *given):
            paths += names
            labels_B = folder_labels(names, classes)
            if table:
                table.add(names, labels_B, arrays['logits'])
            if rows:
                rows.add(arrays | {'labels': labels_B})
        if rows:
            rows.write(whole, paths=np.array(paths))
    return len(paths), table


def _answer(model: Model, what: str, pixels: np.ndarray, layers) -> dict[str, jax.Array]:
    if what == 'classes':
        return {'logits': model.logits(pixels)}
    if what == 'tokens':
        return {'tokens': model.tokens(pixels)}
    features = model.features(pixels, layers)
    return {name: x_LBD.swapaxes(0, 1) for name, x_LBD in features.items()}


def folder_labels(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The class that a folder on the way to each picture names, int32 [B]; -1 where none does."""
    number = {name: i for i, name in enumerate(classes)}

    def label(name):
        found = [number[part] for part in Path(name).parts[:-1] if part in number]
        return found[-1] if found else -1

    return np.array([label(name) for name in names], np.int32)


class _Written:
    """Rows of pictures, their names first: as CSV in a file, and the first of them for a person."""

    def __init__(self, header: Sequence[str], file: TextIO | None):
        self._first, self._count = [], 0
        self._csv = csv.writer(file) if file else None
        self._write([header])

    def _add(self, rows: list[list]) -> None:
        self._first += rows[: SHOWN - len(self._first)]
        self._count += len(rows)
        self._write(rows)

    def _write(self, rows):
        if self._csv:
            self._csv.writerows(rows)

    def _lines(self, in_words: Callable[[list], Iterable[str]]) -> list[str]:
        """in_words: of the cells behind the name."""
        width = min(60, max(len(name) for name, *_ in self._first))
        lines = [
            f'{name[-width:]:{width}}  {"  ".join(in_words(cells))}' for name, *cells in self._first
        ]
        more = self._count - SHOWN
        return lines + ([f'... {more} more'] if more > 0 else [])


class Table(_Written):
    """The `top` best classes of each picture, or all there are, with their probabilities: together
    1, or where a picture may have several, each from 0 to 1. Those below `threshold` are left out,
    their cells empty. As CSV, row by row, in a file."""

    def __init__(
        self,
        classes: Sequence[str],
        top: int,
        problem_type: str = 'single_label_classification',
        file: TextIO | None = None,
        threshold: float = 0.0,
    ):
        self._classes, self._top, self._least = classes, min(top, len(classes)), threshold
        self._hidden = 0  # pictures of more classes than are shown
        self._one_each = problem_type == 'single_label_classification'
        self._known, self._right = 0, 0
        super().__init__(prediction_header(self._top), file)

    def add(self, names: Sequence[str], labels_B: np.ndarray, logits_BC: np.ndarray) -> None:
        """The next pictures; labels: -1 where none is known."""
        probabilities = jax.nn.softmax if self._one_each else jax.nn.sigmoid
        shares_BC = np.asarray(probabilities(logits_BC))
        best_BT = np.argsort(-shares_BC, axis=-1, kind='stable')[:, : self._top]
        rows = []
        for name, label, best_T, shares_C in zip(names, labels_B, best_BT, shares_BC):
            known = self._classes[label] if label >= 0 else ''
            named_T = best_T[shares_C[best_T] >= self._least]
            best = [self._classes[i] for i in named_T]
            row = prediction_row(name, known, best, shares_C[named_T])
            rows.append(row + [''] * (2 * (self._top - len(named_T))))
        self._add(rows)
        if self._least:
            self._hidden += int(np.sum(np.sum(shares_BC >= self._least, axis=1) > self._top))
        known = labels_B >= 0
        self._known += int(known.sum())
        self._right += int(np.sum(best_BT[known, 0] == labels_B[known]))

    def in_words(self) -> str:
        """The first rows and, where labels are known, the accuracy."""

        def in_words(cells):
            pairs = zip(cells[1::2], cells[2::2])  # behind the label
            return (f'{one} {float(share):.3f}' for one, share in pairs if share)

        lines = self._lines(in_words)
        if self._hidden:
            lines.append(
                f'{self._hidden} images have more classes of at least {self._least:g} than the '
                f'{self._top} of --top: raise it to see them'
            )
        if self._known and self._one_each:
            lines.append(
                f'{self._right / self._known:.4f} of the {self._known} images in a folder named '
                'after a class are given that class'
            )
        return '\n'.join(lines)


class NumbersTable(_Written):
    """The numbers of each picture, in the units of the labels; as CSV, row by row, in a file."""

    def __init__(self, names: Sequence[str], file: TextIO | None = None):
        self._names = names
        super().__init__(['image', *names], file)

    def add(self, names: Sequence[str], labels_B: np.ndarray, values_BC: np.ndarray) -> None:
        """The next pictures; no labels are known."""
        cells = ([f'{value:.7g}' for value in values_C] for values_C in values_BC)
        self._add([[name, *each] for name, each in zip(names, cells)])

    def in_words(self) -> str:
        """The first rows."""
        named = lambda cells: (f'{one} {cell}' for one, cell in zip(self._names, cells))
        return '\n'.join(self._lines(named))
