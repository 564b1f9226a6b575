"""Where numbers go: `metrics.jsonl` (one object a logged step), TensorBoard events, the
terminal."""

from collections.abc import Callable, Iterable
import contextlib
import io
import json
import math
from pathlib import Path
import socket
import sys
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from beit_jax.errors import RequestError
from beit_jax.train.workdir.directory import writing
from beit_jax.train.workdir.tracker import Tracker
from beit_jax.whole_files import metric_lines, replace


@contextlib.contextmanager
def _without_torch():
    """tensorboardX imports PyTorch where it can, half of the time of a start, and here in vain."""
    absent = 'torch' not in sys.modules
    if absent:
        sys.modules['torch'] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules['torch']


with _without_torch():
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import image, scalar

SHOWN = (
    'loss',
    'accuracy',
    'pixel_accuracy',
    'token_accuracy',
    'psnr',
    'token_perplexity',
    'lr',
    'grad_norm',
    'step_seconds',
    'images_per_second',
    'utilisation',
    'input_wait',
    'goodput',
)


class MetricsWriter:
    """Writes the metrics of a run from step `start` on; lines of later steps, left by a run that
    was stopped, are dropped first, and what is damaged is set aside.

    Where the storage fails, a line says so, the run goes on, and what could not be written is
    written later.
    """

    def __init__(self, workdir: Path, start: int, total_steps: int, active: bool):
        """`active`: whether this process writes (process 0 does). `kept`: the rows up to `start`,
        where it does."""
        self._active, self.evaluated, self.kept = active, False, []  # of step `start`
        if not active:
            return
        path = workdir / 'metrics.jsonl'
        rows, damaged = metric_lines(path)
        self.kept = kept = [row for row in rows if row['step'] <= start]
        self.evaluated = any(
            name.startswith('eval/') for row in kept if row['step'] == start for name in row
        )
        with writing(workdir):
            if damaged:  # aside first: whoever is killed in between has them twice
                with path.with_suffix('.jsonl.damaged').open('ab') as file:
                    file.writelines(damaged)
            replace(path, ''.join(json.dumps(row) + '\n' for row in kept))
            self._file = path.open('ab', buffering=0)
        self._unwritten, self._warned, self._start = b'', False, start
        self._tracker = None
        self._events, self._directory = None, workdir / 'tensorboard'
        self._bar = tqdm(
            total=total_steps,
            initial=start,
            unit='step',
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        if damaged:
            self.say(
                f'WARNING: {len(damaged)} lines of {path} are damaged: they are set aside in '
                f'{path.name}.damaged, the others stay'
            )

    def also(self, open_tracker: Callable[[], Tracker], refuse: bool) -> None:
        """Has a tracker get from now on what is written. `refuse`: raise what it refuses, else go
        on without it, aloud: a run that has begun does not end for that."""
        try:
            self._tracker = open_tracker()
        except RequestError as error:
            if refuse:
                raise
            self.say(f'WARNING: {error} It goes on without.')

    def write(self, step: int, metrics: dict, more: str = '') -> None:
        """Logs the scalars of a step, and its pictures, uint8 [H, W, 3], which also go to
        WORKDIR/images; `more` stands at the end of its line alone."""
        if not self._active:
            return
        pictures = {name: value for name, value in metrics.items() if np.ndim(value) == 3}
        numbers = {
            name: float(np.float32(value)) if isinstance(value, (np.ndarray, np.generic)) else value
            for name, value in metrics.items()
            if name not in pictures
        }
        # JSON has no NaN
        valid = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._unwritten += (json.dumps({'step': step} | valid) + '\n').encode()
        self._store(step, numbers, pictures)
        self._track(step, numbers, pictures)
        evaluated = {name: value for name, value in numbers.items() if name.startswith('eval/')}
        shown = evaluated or {name: numbers[name] for name in SHOWN if name in numbers}
        self.say(
            f'step {step}/{self._bar.total}  '
            + '  '.join([*(f'{name} {value:.4g}' for name, value in shown.items()), more]).rstrip()
        )

    def _track(self, step, numbers, pictures):
        try:
            if self._tracker:
                self._tracker.write(step, numbers, pictures)
        except Exception as error:  # of many types
            self._tracker = None
            self.say(f'WARNING: config.tracker fails ({error}): the run goes on without')

    def _store(self, step: int = 0, numbers: dict | None = None, pictures: dict | None = None):
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            if numbers:
                self._write_events(step, numbers, pictures)
            for name, picture in (pictures or {}).items():
                self._draw(name.replace('eval/', 'held_out_'), picture)
            self._warned = False
        except OSError as error:
            # a file of events that is torn is not read on: the next is another one
            self._close_events()
            if not self._warned:
                self.say(
                    f'WARNING: metrics of step {step} cannot be written ({error.strerror}): make '
                    'room; they are kept until then'
                )
            self._warned = True

    def _write_events(self, step, numbers, pictures):
        if self._events is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            # not a SummaryWriter, whose thread would hang on a full disk
            self._events = RecordWriter(
                str(
                    self._directory
                    / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{step}'
                )
            )
            self._write_event(0, file_version='brain.Event:2')
            # TensorBoard forgets steps from here on that a stopped run left
            self._write_event(self._start + 1, session_log=SessionLog(status=SessionLog.START))
        for name, value in numbers.items():
            self._write_event(step, summary=scalar(name, value))
        for name, picture in pictures.items():
            self._write_event(step, summary=image(name, picture, dataformats='HWC'))
        self._events.flush()
        self._start = step

    def _draw(self, name, picture):
        folder, file = self._directory.parent / 'images', io.BytesIO()
        Image.fromarray(picture).save(file, 'png')
        folder.mkdir(exist_ok=True)
        replace(folder / f'{name}.png', file.getvalue())

    def _write_event(self, step, **what):
        self._events.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())

    def _close_events(self):
        events, self._events = self._events, None
        with contextlib.suppress(OSError):  # said already
            if events:
                events.close()

    def advance(self) -> None:
        """One more step is done."""
        if self._active:
            self._bar.update()

    def say(self, message: str) -> None:
        """A line for the person at the terminal, above the progress bar."""
        if self._active:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

    def say_all(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.say(message)

    def flush(self) -> bool:
        """Whether everything is written."""
        if self._active:
            self._store()
        return not (self._active and self._unwritten)

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._file.close()
            self._close_events()
            if self._tracker:
                self._tracker.close()


def add_sums(total, sums):
    """Adds two nested dicts of NumPy arrays; `total` may be None."""
    if total is None:
        return sums
    return {name: total[name] + value for name, value in sums.items()}
