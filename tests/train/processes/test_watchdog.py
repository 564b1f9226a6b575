"""A process that hangs, in Python or with the interpreter's lock held, ends with the stacks of its
threads."""

import subprocess
import sys

import pytest

from tests import tiny
from tests.tiny import REPOSITORY

SCRIPT = """
import re, time
from beit_jax.train.processes import watchdog
watchdog._GRACE = 1.0
dog = watchdog.Watchdog(1.0)
for number in range(3):
    dog.reset(f'step {number}')
    time.sleep(0.5)
dog.pause()
time.sleep(2.5)
print('in time', flush=True)
dog.reset('step 7')
def this_hangs():
"""


@pytest.mark.parametrize(
    ('hang', 'status', 'message'),
    [
        ('time.sleep(60)', 70, 'error: step 7 has not ended within 1 s (config.step_timeout)'),
        ("re.match('(a*)*b', 'a' * 40)", 1, 'Timeout'),  # never gives up the interpreter's lock
    ],
    ids=['waits', 'holds the lock'],
)
def test_what_hangs_ends(hang, status, message):
    script = f'{SCRIPT}    {hang}\nthis_hangs()'
    result = subprocess.run(
        [sys.executable, '-c', script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == status and result.stdout == 'in time\n'
    assert message in result.stderr and 'in this_hangs' in result.stderr


def test_without_a_timeout():
    result = subprocess.run(
        [
            sys.executable,
            '-c',
            SCRIPT.replace('Watchdog(1.0)', 'Watchdog(0)') + '    time.sleep(3)\nthis_hangs()',
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert not result.stderr


_LAST_SAVE = """
import runpy, sys, time
from beit_jax.train.workdir.checkpoint import Checkpoints
wait = Checkpoints.wait
def hang(self, seconds=None):
    time.sleep(1000 if self._pending and seconds is None else 0)
    wait(self, seconds)
Checkpoints.wait = hang
sys.argv = sys.argv[1:]
runpy.run_path('main.py', run_name='__main__')
"""


@pytest.mark.slow
def test_a_last_save_that_hangs_ends(tokenizer_dir, tmp_path):
    changed = {'total_steps': 2, 'evaluate_every': 0, 'step_timeout': 15.0}
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir, **changed)
    result = tiny.run(['-c', _LAST_SAVE, *command])
    assert result.returncode == 70, result.stderr
    assert 'error: the last save has not ended within 15 s' in result.stderr
