"""What a model says of pictures, one answer each: classes (in a table too), tokens or features."""

from collections.abc import Sequence
import csv
from pathlib import Path

import jax
import numpy as np

from beit_jax.data.pictures.load import LeaveOut, image_batches
from beit_jax.errors import check
from beit_jax.train.workdir.prediction_table import prediction_header, prediction_row
from beit_jax.weights.models import Model, pad_rows

WHAT = ('classes', 'features', 'tokens')
SHOWN = 20  # rows of the table on the terminal


def predict(
    model: Model,
    what: str,
    images: str,
    batch_size: int,
    limit: int | None = None,
    leave_out: LeaveOut | None = None,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """What the model says of the pictures of a folder, a file or a .npy array, at most `limit`;
    `leave_out` as of `image_batches`.

    Returns:
      the pictures' names, and arrays: `logits` [B, C] of classes, `tokens` [B, P], or `cls` and
        `mean` [B, L, D] of the features of every layer.

    Raises:
      RequestError: no pictures, or a model without classes or tokens, or one that gives numbers.
    """
    check(
        what != 'classes' or model.problem_type != 'regression',
        'these weights give plain numbers, not classes (problem_type regression, or one output): '
        'beit_jax.load(PATH).logits(images) has them; or ask for --what=features.',
    )
    names, parts = [], []
    batches = image_batches(
        images, model.image_size, batch_size, limit, model.crop, leave_out, model.pixels
    )
    for pixels, some in batches:
        made = jax.device_get(_answer(model, what, pad_rows(pixels, batch_size)))
        parts.append({name: array[: len(pixels)] for name, array in made.items()})
        names += some
    return names, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _answer(model: Model, what: str, pixels: np.ndarray) -> dict[str, jax.Array]:
    if what == 'classes':
        return {'logits': model.logits(pixels)}
    if what == 'tokens':
        return {'tokens': model.tokens(pixels)}
    return {name: x_LBD.swapaxes(0, 1) for name, x_LBD in model.features(pixels).items()}


def folder_labels(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The class that a folder on the way to each picture names, int32 [B]; -1 where none does."""
    number = {name: i for i, name in enumerate(classes)}

    def label(name):
        found = [number[part] for part in Path(name).parts[:-1] if part in number]
        return found[-1] if found else -1

    return np.array([label(name) for name in names], np.int32)


class Table:
    """The `top` best classes of each picture, or all there are, with their probabilities: together
    1, or where a picture may have several, each from 0 to 1."""

    def __init__(
        self,
        names: Sequence[str],
        labels_B: np.ndarray,
        logits_BC: np.ndarray,
        classes: Sequence[str],
        top: int,
        problem_type: str = 'single_label_classification',
    ):
        self._one_each = problem_type == 'single_label_classification'
        probabilities = jax.nn.softmax if self._one_each else jax.nn.sigmoid
        shares_BC = np.asarray(probabilities(logits_BC))
        self._best_BT = np.argsort(-shares_BC, axis=-1, kind='stable')[:, :top]
        self._labels_B, self._rows = labels_B, []
        for name, label, best_T, shares_C in zip(names, labels_B, self._best_BT, shares_BC):
            known = classes[label] if label >= 0 else ''
            best = [classes[i] for i in best_T]
            self._rows.append(prediction_row(name, known, best, shares_C[best_T]))

    def in_words(self) -> str:
        """The first rows and, where labels are known, the accuracy."""
        lines = []
        width = min(60, max(len(row[0]) for row in self._rows))
        for name, _, *cells in self._rows[:SHOWN]:
            best = [f'{one} {float(share):.3f}' for one, share in zip(cells[::2], cells[1::2])]
            lines.append(f'{name[-width:]:{width}}  {"  ".join(best)}')
        if len(self._rows) > SHOWN:
            lines.append(f'... {len(self._rows) - SHOWN} more')
        known = self._labels_B >= 0
        if known.any() and self._one_each:
            accuracy = np.mean(self._best_BT[known, 0] == self._labels_B[known])
            lines.append(
                f'{accuracy:.4f} of the {known.sum()} images in a folder named after a class are '
                'given that class'
            )
        return '\n'.join(lines)

    def write(self, path: str) -> None:
        """As CSV."""
        with open(path, 'w', newline='') as file:
            table = csv.writer(file)
            table.writerow(prediction_header(self._best_BT.shape[1]))
            table.writerows(self._rows)
