"""Trains or evaluates a recipe.

    python main.py --config=configs/RECIPE.py[:variant[,key=value]] --workdir=DIR \\
        [--mode=train|evaluate] [--config.KEY=VALUE ...]

Exit status: 0 done, 2 a bad request (the message is on stderr), 75 stopped by a signal after
saving; 74 something could not be read or saved, 70 a step hung. After 70, 74, 75 and a kill the
same command goes on.
"""

import logging
import sys

from absl import app, flags
import absl.logging
from ml_collections import config_flags

from beit_jax.errors import RequestError, StorageError
from beit_jax.runtime import (
    keep_programs,
    machine_named,
    print_any_name,
    quiet_abandoned_saves,
    run_unheard,
    set_deterministic,
    set_xla_flags,
    tell_of_devices,
)
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import parse_flags
from beit_jax.train.evaluation import evaluate
from beit_jax.train.loop import train
from beit_jax.train.processes import distributed
from beit_jax.train.processes.agreement import together
from beit_jax.train.processes.exit_status import status_of
from beit_jax.train.workdir.mirror import opened

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, with a variant after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything that the run writes goes.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'host:port of process 0, to start several processes by hand.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', 1, 'How many processes there are, with --coordinator.'
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', 0, 'Which of them this is, from 0, with --coordinator.'
)
_HEARTBEAT = flags.DEFINE_integer(
    'heartbeat_seconds',
    100,
    'A process that is not heard of for so long is dead, and ends the others.',
)


def _run() -> None:
    """Ends the process where all is well."""
    distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value)
    with together():
        config = task_config(_CONFIG.value)
    run = {'train': train, 'evaluate': evaluate}[_MODE.value]
    with opened(_WORKDIR.value) as workdir:
        keep_programs(workdir)
        status = run(config, workdir)
    distributed.leave(status)


def main(_) -> int | None:
    print_any_name()
    if _MODE.value == 'train':  # an evaluation is there to be heard
        run_unheard()
    # Orbax tells what it does to every file, and prints many stacks of what it raises anyway
    absl.logging.set_verbosity(absl.logging.FATAL)
    quiet_abandoned_saves()
    # JAX tells where there is an accelerator and it takes the CPU
    logging.getLogger('jax').setLevel(logging.WARNING)
    tell_of_devices()
    set_xla_flags()
    if _CONFIG.value.get('deterministic'):
        set_deterministic()
    try:
        with machine_named():
            _run()
    except (RequestError, StorageError, OSError) as error:
        status = status_of(error)
        if status is None:
            raise
        print(f'error: {error}', file=sys.stderr)
        return status


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
