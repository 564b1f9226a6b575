"""A window of steps that is profiled, of a run that stops before, in and after it."""

import jax
import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from tests import tiny

WINDOW = {'start': 2, 'steps': 2}


@pytest.fixture
def trace(monkeypatch):
    """What the profiler was told; it refuses to stop what it did not start, as JAX does."""
    told = []

    def start(directory):
        assert told[-1:] != ['start']
        told.append('start')

    def stop():
        assert told[-1:] == ['start'], 'No profile started'
        told.append('stop')

    monkeypatch.setattr(jax.profiler, 'start_trace', start)
    monkeypatch.setattr(jax.profiler, 'stop_trace', stop)
    return told


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    ('stop', 'window', 'first', 'second'),
    [
        (1, WINDOW, 0, 1),
        (2, WINDOW, 1, 1),  # in the window: the trace is finished, and the rest is another
        (3, WINDOW, 1, 0),
        (4, {'start': 1, 'steps': 3}, 1, 0),
        (3, {'start': 5, 'steps': 9}, 0, 1),  # it ends with the run
        (3, {'start': 2, 'steps': 0}, 0, 0),
    ],
)
def test_a_run_that_stops(stop, window, first, second, tmp_path, monkeypatch, trace):
    # a step, and no tokenizer or evaluation to compile
    model, data = {'depth': 1}, {'num_evaluate_examples': 0}
    settings = tiny.settings('', target='pixels', model=model, data=data, profile=window)
    config = task_config(settings)
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == stop)
    assert loop.train(config, tmp_path) == loop.STOPPED
    assert trace == ['start', 'stop'] * first
    trace.clear()
    monkeypatch.setattr(Stop, 'asked', lambda self, step: False)
    assert loop.train(config, tmp_path) == 0
    assert trace == ['start', 'stop'] * second
