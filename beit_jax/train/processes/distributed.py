"""Joining several processes (a TPU pod, SLURM, or hosts given by flags) and hearing of signals."""

import os
import signal
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np

from beit_jax.errors import RequestError, check

_QUESTIONS = 2**20  # more than are asked while something is compiled
_TASKS = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')  # how many processes there are


def start(
    coordinator: str, num_processes: int, process_id: int, heartbeat_seconds: int = 100
) -> None:
    """Joins the other processes where there are any. Call it before anything else of JAX.

    coordinator: 'host:port' of process 0 with the two numbers, or '' to go by the environment (TPU
    pod, SLURM, Open MPI). heartbeat_seconds: after which a process that is not heard of counts as
    dead; the others then end.
    """
    check(heartbeat_seconds > 0, f'--heartbeat_seconds={heartbeat_seconds}: use at least 1 second.')
    if coordinator:
        host, _, port = coordinator.rpartition(':')
        check(
            bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
            f'--coordinator={coordinator}: give HOST:PORT of process 0, a port up to 65535.',
        )
        check(
            0 <= process_id < num_processes,
            f'--process_id={process_id} is not in 0 ... --num_processes={num_processes} - 1.',
        )
        # where one never comes, the runtime ends this process with its own stacks
        print(
            f'process {process_id} of {num_processes} meets the others at {coordinator}',
            file=sys.stderr,
        )
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
        )
        return
    check(
        (num_processes, process_id) == (1, 0),
        f'--num_processes={num_processes} --process_id={process_id} take --coordinator=HOST:PORT.',
    )
    if not _is_cluster(os.environ):
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    except (KeyError, ValueError) as error:  # of what the scheduler should have set
        given = ', '.join(f'{name}={os.environ[name]}' for name in _TASKS if name in os.environ)
        raise RequestError(
            f'the environment ({given}) is that of several processes and does not say how they '
            f'meet ({error}): start them with srun or mpirun, or give --coordinator, '
            '--num_processes and --process_id; to run alone, unset these variables.'
        ) from error


def _is_cluster(environment) -> bool:
    """Whether the scheduler started several processes of this program."""
    counts = [environment.get(name) or '1' for name in _TASKS]
    tasks = max(int(count) if count.isdecimal() else 1 for count in counts)
    # An interactive `srun --pty` shell or `salloc` has SLURM_NTASKS too, but no step of its own
    # with that many tasks.
    in_step = (
        'SLURM_STEP_NUM_TASKS' not in environment or int(environment['SLURM_STEP_NUM_TASKS']) > 1
    )
    return (
        (tasks > 1 and in_step)
        or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
        or 'MEGASCALE_COORDINATOR_ADDRESS' in environment
    )


def leave(status: int) -> None:
    """Ends the process now: what a library still has running, as Orbax for minutes after a save
    that failed, does not hold it up."""
    jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stop:
    """Whether the run was asked to stop: SIGTERM (preemption) or SIGINT (Ctrl-C). A second SIGINT
    ends at once.

    Several processes stop at the same question: JAX says yes to the first one, by its number, that
    none of them has asked. So they ask equally often, or call `meet` afterwards.
    """

    def __init__(self):
        self._heard, self._questions = False, 0

    def listen(self) -> None:
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            signal.signal(number, self._hear)

    def _hear(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            # which the coordination service hears, so that all processes stop at one step
            signal.raise_signal(signal.SIGTERM)
        else:
            self._heard = True

    def heard(self) -> bool:
        """Whether to stop now."""
        if jax.process_count() > 1:
            self._questions += 1
            self._heard |= multihost_utils.reached_preemption_sync_point(self._questions)
        return self._heard

    def meet(self) -> None:
        """All processes call it where they may have asked differently often: the next question is
        the same one again."""
        self._questions = (self._questions // _QUESTIONS + 1) * _QUESTIONS

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`."""
        return self.heard()


def anywhere(found: bool) -> bool:
    """Whether any process found it; all must ask."""
    if jax.process_count() == 1:
        return found
    return bool(multihost_utils.process_allgather(np.array(found)).any())


def agreed(found: bool) -> bool:
    """What process 0 found, in all processes."""
    if jax.process_count() == 1:
        return found
    return bool(multihost_utils.broadcast_one_to_all(np.array(found)))
