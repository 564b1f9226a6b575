"""Two runs in one work directory are told of one another; a run that was killed is in nobody's
way."""

import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from beit_jax.errors import StorageError
from beit_jax.train.workdir import lock as locks
from beit_jax.train.workdir.lock import FILE, Lock
from tests.tiny import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from beit_jax.train.workdir.lock import Lock
lock = Lock(Path(sys.argv[1]))
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def beats(monkeypatch):
    monkeypatch.setattr(locks, 'BEAT', 0.2)


@pytest.fixture
def other(tmp_path):
    """A process that holds the work directory."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.communicate()


def test_held_and_free_again(tmp_path, other):
    """By a process of this machine: said at once who; killed, it is free at once."""
    for _ in range(2):
        with pytest.raises(StorageError, match=rf'is in use by process {other.pid} on .*: wait'):
            Lock(tmp_path)
    other.send_signal(signal.SIGKILL)
    while Path(f'/proc/{other.pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z':
        time.sleep(0.01)  # nobody has asked for its status yet
    began = time.monotonic()
    Lock(tmp_path).close()
    assert time.monotonic() - began < locks.BEAT and not (tmp_path / FILE).exists()


def test_another_process_with_the_number_of_the_dead(tmp_path):
    """Numbers of processes come again; when they began does not."""
    dead = {'host': 'h', 'process': os.getpid(), 'machine': locks._machine(), 'started': 7}
    (tmp_path / FILE).write_text(json.dumps(dead) + '\n000000000003\n')
    Lock(tmp_path).close()


def elsewhere(path: Path, count: int) -> None:
    there = {'host': 'elsewhere', 'process': 11, 'machine': 'another', 'started': 13}
    path.write_text(f'{json.dumps(there)}\n{count:012}\n')


@pytest.mark.parametrize('content', ['', 'x', '[1]', '{"host": "h"}', None])
def test_left_behind_elsewhere(content, tmp_path, beats, capsys):
    """Of a host that does not answer, or torn: free after a bounded time, whatever clocks say."""
    path = tmp_path / FILE
    elsewhere(path, 3) if content is None else path.write_text(content)
    os.utime(path, (2**33, 2**33))
    began = time.monotonic()
    with contextlib.closing(Lock(tmp_path)):
        assert time.monotonic() - began >= locks.PATIENCE * locks.BEAT
        who = 'process 11 on elsewhere' if content is None else 'another run'
        assert f'was in use by {who}: waiting for a sign of it, 1 s' in capsys.readouterr().out
        assert json.loads(path.read_text().split('\n')[0])['process'] == os.getpid()


def test_alive_elsewhere(tmp_path, monkeypatch):
    counts = iter(range(4, 9))
    elsewhere(tmp_path / FILE, 3)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            elsewhere(tmp_path / FILE, next(counts))

    monkeypatch.setattr(locks.time, 'sleep', sleep)
    with pytest.raises(StorageError, match='is in use by process 11 on elsewhere'):
        Lock(tmp_path)
    assert waited == [locks.BEAT] * 3


def test_a_full_disk(small_disk):
    """What cannot be written is not left behind empty, for the next start to wonder about."""
    filler = small_disk / 'filler'
    with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match='cannot be written: No space left'):
        Lock(small_disk)
    assert not (small_disk / FILE).exists()


def test_the_count_goes_on_and_who_is_overtaken_saves_no_more(tmp_path, beats):
    path = tmp_path / FILE
    with contextlib.closing(Lock(tmp_path)) as lock:
        contents = set()
        for _ in range(15):
            contents.add(path.read_bytes())
            time.sleep(0.1)
        assert len(contents) >= 3 and len({len(content) for content in contents}) == 1
        lock.check()
        elsewhere(path, 8)
        time.sleep(0.5)
        with pytest.raises(StorageError, match='taken over by process 11 on elsewhere'):
            lock.check()
    assert b'elsewhere' in path.read_bytes(), 'it is not ours to remove'
    path.unlink()
    with contextlib.closing(Lock(tmp_path)) as lock:
        path.unlink()
        lock.check()  # who removes it takes the risk
