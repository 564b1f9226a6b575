"""Tables of what was predicted for each image: CSV, a row an image."""

import csv
import functools
from pathlib import Path

from beit_jax.train.workdir.directory import writing


class PredictionsWriter:
    """A table of what was predicted for each image: image, label, and the names and probabilities
    of the best classes."""

    def __init__(self, path: Path, source, active: bool):
        """source: the images, in order; `active`: whether this process writes (process 0 does)."""
        self._path, self._source, self._active = path, source, active
        self._file, self._done = None, 0

    def __enter__(self):
        return self

    def write(self, rows: dict) -> None:
        """The rows of the next batch: `label` and `valid` [B], `classes` and `probabilities` [B,
        T]; {} where the task predicts no classes."""
        if not (rows and self._active):
            return
        if self._file is None:
            with writing(self._path.parent):
                self._file = self._path.open('w', newline='')
            csv.writer(self._file).writerow(prediction_header(rows['classes'].shape[1]))
        table = csv.writer(self._file)
        name = functools.partial(class_name, self._source.class_names)
        for row, valid in enumerate(rows['valid']):
            if valid:
                image, label = self._source.name(self._done), name(rows['label'][row])
                best = map(name, rows['classes'][row])
                table.writerow(prediction_row(image, label, best, rows['probabilities'][row]))
            self._done += 1

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
