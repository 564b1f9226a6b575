"""Joining other processes: what cannot be meant is refused in a line."""

import os
import re
import subprocess
import sys

import pytest

from beit_jax.errors import RequestError
from beit_jax.train.processes import distributed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('garbage', 2, 0), r'--coordinator=garbage: give HOST:PORT'),
        ((':1234', 2, 0), r'--coordinator=:1234: give HOST:PORT'),
        (('host:99999', 2, 0), r'port up to 65535'),
        (('host:x', 2, 0), r'give HOST:PORT'),
        (('host:1234', 2, 2), r'--process_id=2 is not in 0 ... --num_processes=2 - 1'),
        (('host:1234', 0, 0), r'--process_id=0 is not in'),
        (('', 2, 0), r'--num_processes=2 --process_id=0 take --coordinator'),
        (('', 1, 1), r'--num_processes=1 --process_id=1 take --coordinator'),
        (('', 1, 0, 0), r'--heartbeat_seconds=0: use at least 1'),
    ],
)
def test_flags(arguments, message):
    with pytest.raises(RequestError, match=message):
        distributed.start(*arguments)


@pytest.mark.parametrize('name', ['SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_variables_of_a_scheduler_that_did_not_start_it(name, monkeypatch):
    """In a process of its own, for it is too late once JAX has a device."""
    script = "from beit_jax.train.processes.distributed import start; start('', 1, 0)"
    environment = os.environ | {name: '4'}
    found = subprocess.run(
        [sys.executable, '-c', script], env=environment, stderr=subprocess.PIPE, check=False
    )
    message = rf'RequestError: the environment \({name}=4\) is that of several.*with srun or mpirun'
    assert re.search(message, found.stderr.decode()), found.stderr
    for alone in ('1', '', 'x'):
        monkeypatch.setattr(os, 'environ', {name: alone})
        distributed.start('', 1, 0)
