"""Joining several processes (a TPU pod, SLURM, or hosts given by flags) and hearing of signals."""
import os
import signal

import jax
from jax.experimental import multihost_utils

from beit_jax.config import check


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes where there are any. Call it before anything else of JAX.

    coordinator: 'host:port' of process 0 with the two numbers, or '' to go by the environment (TPU pod, SLURM, Open MPI).
    """
    if coordinator:
        check(0 <= process_id < num_processes, f'--process_id={process_id} is not in 0 ... --num_processes={num_processes} - 1.')
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif _is_cluster(os.environ):
        jax.distributed.initialize()


def _is_cluster(environment) -> bool:
    """Whether the scheduler started several processes of this program."""
    tasks = max(int(environment.get(name) or 1) for name in ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'))
    # An interactive `srun --pty` shell or `salloc` has SLURM_NTASKS too, but no step of its own with that many tasks.
    in_step = 'SLURM_STEP_NUM_TASKS' not in environment or int(environment['SLURM_STEP_NUM_TASKS']) > 1
    return (tasks > 1 and in_step) or ',' in environment.get('TPU_WORKER_HOSTNAMES', '') or 'MEGASCALE_COORDINATOR_ADDRESS' in environment


class Stop:
    """Whether the run was asked to stop: SIGTERM (preemption) or SIGINT (Ctrl-C). A second SIGINT ends at once."""

    def __init__(self):
        self._signal = None

    def listen(self) -> None:
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in signals:  # with several processes the coordination service hears SIGTERM
            signal.signal(number, self._hear)

    def _hear(self, number, frame):
        self._signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; with several processes they all say the same, and all must ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None
