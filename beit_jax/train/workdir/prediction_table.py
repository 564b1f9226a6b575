"""Tables of what was predicted for each image: CSV, a row an image; of classes the best with their
probabilities, of regression the numbers."""

import csv
import functools
from pathlib import Path

import numpy as np

from beit_jax.train.workdir.directory import writing

_NUMBER = ('_label', '')  # ends of the columns of a number


class PredictionsWriter:
    """A table of what was predicted for each image: image, label (several names with | between
    them), and the names and probabilities of the best classes; or of each number the label and what
    was predicted."""

    def __init__(self, path: Path, source, active: bool):
        """source: the images, in order; `active`: whether this process writes (process 0 does)."""
        self._path, self._source, self._active = path, source, active
        self._file, self._done = None, 0

    def __enter__(self):
        return self

    def write(self, rows: dict) -> None:
        """The rows of the next batch: `label` and `valid` [B], `classes` and `probabilities` [B,
        T], where an image may have several classes `label` [B, C] of 0 and 1; or numbers, `label`
        and `values` [B, C]; {} where the task predicts nothing of that."""
        if not (rows and self._active):
            return
        if self._file is None:
            with writing(self._path.parent):
                self._file = self._path.open('w', newline='')
            csv.writer(self._file).writerow(self._header(rows))
        table = csv.writer(self._file)
        for row, valid in enumerate(rows['valid']):
            if valid:
                values = {name: array[row] for name, array in rows.items()}
                table.writerow(self._row(self._source.name(self._done), **values))
            self._done += 1

    def _header(self, rows):
        if 'values' not in rows:
            return prediction_header(rows['classes'].shape[1])
        return ['image', *(f'{name}{of}' for name in self._source.class_names for of in _NUMBER)]

    def _row(self, image, label, classes=(), probabilities=(), values=None, **_):
        if values is not None:
            return [image, *(f'{one:.7g}' for pair in zip(label, values) for one in pair)]
        name = functools.partial(class_name, self._source.class_names)
        labels = np.flatnonzero(label) if np.ndim(label) else [label]
        return prediction_row(image, '|'.join(map(name, labels)), map(name, classes), probabilities)

    def __exit__(self, *_):
        if self._file:
            self._file.close()


def prediction_header(top: int) -> list[str]:
    """Column names of a table of predictions with the `top` best classes."""
    return [
        'image',
        'label',
        *(f'{name}{i}' for i in range(1, top + 1) for name in ('class', 'probability')),
    ]


def prediction_row(image: str, label: str, classes, probabilities) -> list[str]:
    """A row of it: names of the best classes with their probabilities."""
    return [
        image,
        label,
        *(cell for name, share in zip(classes, probabilities) for cell in (name, f'{share:.6f}')),
    ]


def class_name(names, number: int) -> str:
    """The name of a class, or its number where there are more classes than names."""
    return names[number] if number < len(names) else str(number)
