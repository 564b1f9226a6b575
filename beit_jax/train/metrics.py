"""Where numbers go: `metrics.jsonl` (one object a logged step), TensorBoard events, the terminal, and `predictions.csv`."""
import contextlib
import csv
import json
import math
from pathlib import Path
import sys

import numpy as np
import tensorboardX
from tqdm import tqdm

from beit_jax.errors import RequestError
from beit_jax.records import whole_lines

SHOWN = ('loss', 'accuracy', 'token_accuracy', 'psnr', 'token_perplexity', 'lr', 'grad_norm', 'images_per_second')


@contextlib.contextmanager
def writing(workdir: Path):
    """Makes the work directory; where it, or what the block writes, cannot be written, a RequestError says so."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RequestError(f'--workdir={workdir} cannot be written: {error.strerror}.') from error


class MetricsWriter:
    """Writes the metrics of a run from step `start` on; lines of later steps, left by a run that was stopped, are dropped first."""

    def __init__(self, workdir: Path, start: int, total_steps: int, active: bool):
        """`active`: whether this process writes (process 0 does)."""
        self._active = active
        if not active:
            return
        path = workdir / 'metrics.jsonl'
        path.write_text(''.join(line for line in whole_lines(path) if json.loads(line)['step'] <= start))
        self._file = path.open('a', buffering=1)
        self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1, flush_secs=10)
        self._bar = tqdm(total=total_steps, initial=start, unit='step', disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def write(self, step: int, metrics: dict) -> None:
        """Logs the scalars of a step."""
        if not self._active:
            return
        numbers = {name: float(np.float32(value)) if isinstance(value, (np.ndarray, np.generic)) else value for name, value in metrics.items()}
        valid = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
        self._file.write(json.dumps({'step': step} | valid) + '\n')
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        evaluated = {name: value for name, value in numbers.items() if name.startswith('eval/')}
        shown = evaluated or {name: numbers[name] for name in SHOWN if name in numbers}
        self.say(f'step {step}/{self._bar.total}  ' + '  '.join(f'{name} {value:.4g}' for name, value in shown.items()))

    def advance(self) -> None:
        """One more step is done."""
        if self._active:
            self._bar.update()

    def say(self, message: str) -> None:
        """A line for the person at the terminal, above the progress bar."""
        if self._active:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._board.close()
            self._file.close()


class PredictionsWriter:
    """A table of what was predicted for each image: image, label, and the names and probabilities of the best classes."""

    def __init__(self, path: Path, source, active: bool):
        """source: the images, in order; `active`: whether this process writes (process 0 does)."""
        self._path, self._source, self._active, self._file, self._done = path, source, active, None, 0

    def __enter__(self):
        return self

    def write(self, rows: dict) -> None:
        """The rows of the next batch: `label` and `valid` [B], `classes` and `probabilities` [B, T]; {} where the task predicts no classes."""
        if not (rows and self._active):
            return
        if self._file is None:
            with writing(self._path.parent):
                self._file = self._path.open('w', newline='')
            csv.writer(self._file).writerow(prediction_header(rows['classes'].shape[1]))
        table, name = csv.writer(self._file), lambda number: class_name(self._source.class_names, number)
        for label, valid, classes, probabilities in zip(*(rows[name] for name in ('label', 'valid', 'classes', 'probabilities'))):
            if valid:
                table.writerow(prediction_row(self._source.name(self._done), name(label), map(name, classes), probabilities))
            self._done += 1

    def __exit__(self, *_):
        if self._file:
            self._file.close()


def prediction_header(top: int) -> list[str]:
    """Column names of a table of predictions with the `top` best classes."""
    return ['image', 'label', *(f'{name}{i}' for i in range(1, top + 1) for name in ('class', 'probability'))]


def prediction_row(image: str, label: str, classes, probabilities) -> list[str]:
    """A row of it: names of the best classes with their probabilities."""
    return [image, label, *(cell for name, share in zip(classes, probabilities) for cell in (name, f'{share:.6f}'))]


def class_name(names, number: int) -> str:
    """The name of a class, or its number where there are more classes than names."""
    return names[number] if number < len(names) else str(number)


def add_sums(total, sums):
    """Adds two nested dicts of NumPy arrays; `total` may be None."""
    if total is None:
        return sums
    return {name: total[name] + value for name, value in sums.items()}
