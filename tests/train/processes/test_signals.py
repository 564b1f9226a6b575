"""SIGTERM while several processes evaluate or compile: all answer it soon, at one place."""

import signal
import time

import jax
from jax.experimental import multihost_utils
import pytest

from beit_jax.train.processes.distributed import Stop
from tests import tiny


@pytest.fixture
def several(monkeypatch):
    """Two processes as JAX answers them; what is appended is the question at which all stop."""
    stop_at = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    reached = lambda question: question in stop_at
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', reached)
    return stop_at


def test_processes_stop_at_one_question(several):
    """However often each asked while it compiled."""
    pair = Stop(), Stop()
    for stop, times in zip(pair, (3, 50)):
        assert not any(stop.heard() for _ in range(times))
        stop.meet()
    (question,) = {stop._questions for stop in pair}
    several.append(question + 2)
    assert [[stop.asked(step) for step in (1, 2, 3)] for stop in pair] == [[False, True, True]] * 2


@pytest.mark.slow
@pytest.mark.parametrize('phase', ['compile', 'evaluation'])
def test_sigterm_of_one(phase, tokenizer_dir, tmp_path):
    """Compiling and evaluating take long here; both processes end with 75 long before that."""
    changed = {'total_steps': 3, 'evaluate_every': 1, 'data': {'num_evaluate_examples': 9001}}
    if phase == 'compile':
        changed['model'] = {'depth': 29, 'unroll': 29}
    notes = tmp_path / 'notes'
    notes.touch()
    command = ['-m', 'tests.train.noted_run', str(notes)]
    command += tiny.arguments(tmp_path / 'run', tokenizer_dir, **changed)[1:]
    pair = tiny.start_pair(command, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'compiled'))
    deadline = time.monotonic() + 300
    while f'"phase": "{phase}"' not in notes.read_text():
        assert time.monotonic() < deadline and all(each.poll() is None for each in pair)
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, out + err
    assert notes.read_text().count('"phase": "evaluation"') < 2 * 9001 // 8
