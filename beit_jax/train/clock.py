"""Where the time of a run goes: into steps, into waiting for pictures, into the rest."""

from collections.abc import Iterable
import concurrent.futures
import time

from beit_jax.machines.peaks import peak_flops
from beit_jax.train.run import Run
from beit_jax.train.workdir.launches import launches

# what metrics say of time, which is never the same twice
TIMINGS = (
    'step_seconds',
    'images_per_second',
    'images_per_second_per_device',
    'tflops_per_second_per_device',
    'utilisation',
    'input_wait',
    'goodput',
)


class Clock:
    """Times the steps of a run from after `step` on, without its evaluations and saves."""

    def __init__(self, run: Run, step: int, flops: tuple[int, int], rows: list[dict]):
        """
        Args:
          flops: of a training step, and of what prepares its batch where that is not cached.
          rows: the metrics that were logged up to `step`.
        """
        self._run, self._flops = run, flops
        now = {'time': time.time(), 'step': step}  # of a process that does not log
        self._launch = launch = next(iter(launches(run.workdir)), now)
        self._peak = peak_flops(run.mesh.devices.flat[0])
        self._in_steps, self._logged = time_in_steps(rows, launch['step'])
        self._began, self._in_steps_before = time.perf_counter(), self._in_steps
        self.laps = 0
        self.restart(step)

    def restart(self, step: int) -> None:
        """What took time since `step` was no step."""
        self._step, self._time, self._waited = step, time.perf_counter(), 0.0

    def fetched(self, asked: float, before: concurrent.futures.Future) -> None:
        """A batch is there that was asked for at a time. before: gives the time at which the step
        before it was done, from which on the device has waited too."""
        if before.done():
            self._waited += time.perf_counter() - max(asked, before.result())

    def lap(self, step: int) -> tuple[dict, str]:
        """(TIMINGS of the steps since the last lap or restart, how long the run still takes).

        `step_seconds` is the mean. `tflops_per_second_per_device` counts the products of the
        method; `utilisation` is its share of the device's peak, where that is known.
        `input_wait` is the share of the time in which this process's devices waited for pictures,
        `goodput` the share that steps have of all the time since the run was first started.
        """
        seconds, steps = time.perf_counter() - self._time, step - self._step
        of_step, of_preparation = self._flops
        prepared = min(max(0, self._run.batches.cached_from - self._step), steps)
        devices, each = self._run.mesh.size, seconds / steps
        rate = self._run.config.batch_size / each
        flops = (steps * of_step + prepared * of_preparation) / seconds / devices
        self._in_steps += each * (step - self._logged)
        since = max(time.time() - self._launch['time'], self._in_steps)  # clocks are set back
        figures = {
            'step_seconds': each,
            'images_per_second_per_device': rate / devices,
            'tflops_per_second_per_device': flops / 1e12,
            'input_wait': self._waited / seconds,
            'goodput': self._in_steps / since,
        }
        if self._peak:
            figures['utilisation'] = flops / self._peak
        figures = {name: float(f'{value:.6g}') for name, value in figures.items()}
        left = (self._run.config.total_steps - step) * each * self._overhead()
        self._logged = step
        self.laps += 1
        self.restart(step)
        figures['images_per_second'] = round(rate, 1)
        return figures, f'{duration(left)} left' if left else ''

    def _overhead(self) -> float:
        """How many times as long as its steps this process takes."""
        here = self._in_steps - self._in_steps_before
        return max(1.0, (time.perf_counter() - self._began) / here)


def time_in_steps(rows: Iterable[dict], step: int) -> tuple[float, int]:
    """(seconds that the steps after `step` took by the lines of `metrics.jsonl`, the last of these
    steps)."""
    seconds = 0.0
    for row in rows:
        if row['step'] > step and row.get('step_seconds'):
            seconds += row['step_seconds'] * (row['step'] - step)
            step = row['step']
    return seconds, step


def duration(seconds: float) -> str:
    """For a person: '45 s', '12 min', '3 h 05 min', '4.2 days'."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f'{seconds:.0f} s'
    if minutes < 60:
        return f'{minutes} min'
    if minutes < 48 * 60:
        return f'{minutes // 60} h {minutes % 60:02} min'
    return f'{minutes / 1440:.1f} days'
