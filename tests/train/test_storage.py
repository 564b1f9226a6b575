"""Storage that is full or read-only while a run writes: it warns, goes on, and loses nothing that a
later start would need."""

import subprocess
import threading
import time

import jax.numpy as jnp
import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.processes.exit_status import UNSAVED
from beit_jax.train.workdir.checkpoint import Checkpoints
from tests import tiny
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures('one_device')


def fill(disk):
    subprocess.run(
        ['dd', 'if=/dev/zero', f'of={disk / "filler"}', 'bs=1k'], capture_output=True, check=False
    )


def read_only(path):
    subprocess.run(['mount', '--bind', path, path], check=True)
    subprocess.run(['mount', '-o', 'remount,bind,ro', path], check=True)


SPOIL = {
    'full': (fill, lambda disk: (disk / 'filler').unlink()),
    'read-only': (
        lambda disk: read_only(disk / 'run/checkpoints'),
        lambda disk: subprocess.run(['umount', disk / 'run/checkpoints'], check=True),
    ),
}


@pytest.mark.parametrize(
    ('how', 'mended'),
    [
        ('full', 0),
        ('read-only', 4),
        pytest.param('full', 4, marks=pytest.mark.slow),
        pytest.param('read-only', 0, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_no_more(
    how, mended, uninterrupted, tokenizer_dir, small_disk, monkeypatch, capfd
):
    """From step 2 on, until step 4 or to the end; the run saves after steps 3 and 5. A first start
    has saved step 1."""
    spoil, mend = SPOIL[how]
    config, workdir = task_config(tiny.settings(tokenizer_dir)), small_disk / 'run'
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 1)
    assert loop.train(config, workdir) == loop.STOPPED

    def asked(self, step):
        if step in (2, mended):
            (spoil if step == 2 else mend)(small_disk)
        return False

    monkeypatch.setattr(Stop, 'asked', asked)
    status = loop.train(config, workdir)
    out, err = capfd.readouterr()
    assert 'Traceback' not in out + err
    assert (
        out.count('WARNING: the checkpoint of step 3 could not be written') == 1
        and 'the newest is that of step 1' in out
    )
    assert out.count('cannot be written') == (how == 'full'), 'the metrics, once'
    if mended:
        assert status == 0
    else:
        assert status == UNSAVED and 'error: not everything is written' in out
        assert 'step 5/5  loss' in out, 'it went on to the end'
        mend(small_disk)
        monkeypatch.undo()
        assert loop.train(config, workdir) == 0
        assert 'resumed after step 1' in capfd.readouterr().out
    assert_same_run(workdir, uninterrupted)
    assert not list((workdir / 'checkpoints').glob('*tmp*')), 'nothing half written is left'


def test_slow_storage(uninterrupted, tokenizer_dir, tmp_path, monkeypatch, capsys):
    """The save of step 1 takes until step 4 is done: the run does not wait for it, but for the last
    one."""
    started, done = Checkpoints.save, threading.Event()

    def save(self, state, step, *rest):
        started(self, state, step, *rest)
        if step == 1:
            number, response = self._pending
            self._pending = number, Slow(response, done)

    monkeypatch.setattr(Checkpoints, 'save', save)
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 4 and done.set())
    assert loop.train(task_config(tiny.settings(tokenizer_dir, save_every=1)), tmp_path) == 0
    out = capsys.readouterr().out
    assert [f'storage is slow: step {step} is not saved' in out for step in range(1, 6)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert_same_run(tmp_path, uninterrupted)
    assert Checkpoints(tmp_path).steps == [5, 4, 1]


class Slow:
    """A save that is done when the event is set."""

    def __init__(self, response, done):
        self.response, self.done = response, done

    def result(self, seconds=None):
        if not self.done.wait(seconds):
            raise TimeoutError
        return self.response.result()


@pytest.mark.parametrize('seconds', [-4e8, -3600, 3600, 864000])
def test_a_clock_that_is_set_while_a_save_is_under_way(seconds, tmp_path, monkeypatch):
    """Orbax has time-outs by it."""
    shift, clock = [0.0], time.time
    monkeypatch.setattr(time, 'time', lambda: clock() + shift[0])
    monkeypatch.setattr(time, 'time_ns', lambda: int(1e9 * time.time()))
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (1, 2):
        checkpoints.save({'params': {'a': jnp.arange(7.0)}}, step, {'task': 'a'})
        shift[0] += seconds
        checkpoints.wait()
        assert checkpoints.warnings() == []
    checkpoints.close()
    assert checkpoints.steps == [2, 1]


@pytest.mark.slow
def test_a_full_disk_does_not_hold_up_the_process(tokenizer_dir, small_disk):
    """Orbax has threads that wait for five minutes after a save that failed."""
    fill(small_disk)
    with open(small_disk / 'filler', 'r+b') as filler:
        filler.truncate((small_disk / 'filler').stat().st_size - 100_000)
    result = tiny.run(tiny.arguments(small_disk / 'run', tokenizer_dir), timeout=150)
    assert result.returncode == UNSAVED and 'could not be written' in result.stdout, result
    assert not result.stderr, 'one line of ours, and no stacks of Orbax and asyncio'


def test_what_cannot_be_written_at_the_start(tokenizer_dir, small_disk):
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    result = tiny.run(tiny.arguments(small_disk / 'run', tokenizer_dir))
    assert (
        result.returncode == UNSAVED
        and 'Read-only file system' in result.stderr
        and 'Traceback' not in result.stderr
    )
