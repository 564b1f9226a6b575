"""The flags of main.py, and what becomes of them."""

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
from beit_jax.settings.recipes import describe, parse_flags, program, recipe_of
from beit_jax.train.processes.exit_status import status_of

_USAGE = """\
usage: {} --config=RECIPE[:variant[,key=value]] --workdir=DIR
                [--config.KEY=VALUE ...] [options]

Trains or evaluates a recipe. After a kill, and every exit status but 0 (done) and 2 (a bad
request), the same command goes on.
"""
_HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')

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


def _run(run) -> None:
    """Ends the process where all is well. run: `train` or `evaluate`."""
    from beit_jax.train.processes import distributed
    from beit_jax.train.processes.agreement import together
    from beit_jax.train.workdir.mirror import opened

    distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value)
    with together():
        config = task_config(_CONFIG.value)
    with opened(_WORKDIR.value) as workdir:
        keep_programs(workdir)
        status = run(config, workdir)
    distributed.leave(status)


def main(_) -> int | None:
    # here and not above: --help answers without JAX
    from beit_jax.train.evaluation import evaluate
    from beit_jax.train.loop import train

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
            _run({'train': train, 'evaluate': evaluate}[_MODE.value])
    except (RequestError, StorageError, OSError) as error:
        status = status_of(error)
        if status is None:
            raise
        print(f'error: {error}', file=sys.stderr)
        return status


def run(argv: list[str] | None = None) -> None:
    """Does what the command line, or `argv`, says, and exits with the status."""
    app.run(main, argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    if not set(_HELP) & set(argv):
        return parse_flags(argv)
    try:
        run_unheard()  # by a pager that is left
        given = recipe_of(argv)
        print(describe(*given) if given else _help(program(argv)))
        sys.exit(0)
    except RequestError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def _help(called: str) -> str:
    known = flags.FLAGS.get_flags_for_module(__name__)
    # beit train and beit evaluate are two commands
    taken = [flag for flag in known if flag.name != 'mode' or called == 'python main.py']
    rows = [f'  --{flag.name:20}{flag.help}' for flag in taken]
    end = f'Every setting of a recipe: {called} --config=RECIPE --help'
    return '\n'.join([_USAGE.format(called), *rows, '', end])
