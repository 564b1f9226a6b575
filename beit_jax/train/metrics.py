"""Where numbers go: `metrics.jsonl` (one object a logged step), TensorBoard events, and the terminal."""
import json
from pathlib import Path
import sys

import numpy as np
import tensorboardX
from tqdm import tqdm

SHOWN = ('loss', 'token_accuracy', 'psnr', 'token_perplexity', 'lr', 'grad_norm', 'images_per_second')


class MetricsWriter:
    """Writes the metrics of a run from step `start` on; lines of later steps, left by a run that was stopped, are dropped first."""

    def __init__(self, workdir: Path, start: int, total_steps: int, active: bool):
        """`active`: whether this process writes (process 0 does)."""
        self._active = active
        if not active:
            return
        path = workdir / 'metrics.jsonl'
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= start]
        path.write_text(''.join(kept))
        self._file = path.open('a', buffering=1)
        self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1, flush_secs=10)
        self._bar = tqdm(total=total_steps, initial=start, unit='step', disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def write(self, step: int, metrics: dict) -> None:
        """Logs the scalars of a step."""
        if not self._active:
            return
        numbers = {name: float(np.float32(value)) if isinstance(value, (np.ndarray, np.generic)) else value for name, value in metrics.items()}
        self._file.write(json.dumps({'step': step} | numbers) + '\n')
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


def add_sums(total, sums):
    """Adds two nested dicts of NumPy arrays; `total` may be None."""
    if total is None:
        return sums
    return {name: total[name] + value for name, value in sums.items()}
