"""Ends a run that hangs: a device, a peer or storage that never answers would otherwise hold the
machines until someone looks."""

import faulthandler
import os
import sys
import threading
import time

from beit_jax.train.processes.exit_status import HUNG

# Seconds after which the interpreter's own timer, which needs no lock, steps in for the thread.
_GRACE = 10.0


class Watchdog:
    """Waits for the next `reset` for `timeout` seconds (0: for ever), then prints the stacks of all
    threads and ends the process."""

    def __init__(self, timeout: float):
        self._timeout, self._what, self._deadline = timeout, '', None
        self._changed = threading.Condition()
        if timeout:
            threading.Thread(target=self._watch, daemon=True).start()

    def reset(self, what: str) -> None:
        """`what` begins now: 'step 7'."""
        if self._timeout:
            faulthandler.dump_traceback_later(
                self._timeout + _GRACE, exit=True, file=sys.__stderr__
            )
            with self._changed:
                self._what, self._deadline = what, time.monotonic() + self._timeout
                self._changed.notify()

    def pause(self) -> None:
        """What comes now may take as long as it likes."""
        faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._deadline = None

    close = pause

    def _watch(self):
        with self._changed:
            while self._deadline is None or (left := self._deadline - time.monotonic()) > 0:
                self._changed.wait(None if self._deadline is None else left)
        print(
            f'error: {self._what} has not ended within {self._timeout:g} s (config.step_timeout): '
            'a device, another process or storage does not answer. Stacks follow. The same '
            'command goes on from the newest checkpoint.',
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(HUNG)  # whatever hangs would also hang an orderly exit
