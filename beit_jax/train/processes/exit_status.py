"""How a run ends, for what starts it again (docs/runs.md); as in sysexits.h.

What the same command may mend is started again: every status but DONE and REFUSED.
"""

from beit_jax.errors import PASSING, RequestError, StorageError

DONE = 0
REFUSED = 2  # a bad request, or the run gave up: the command has to change
HUNG = 70  # a step did not end in time (EX_SOFTWARE)
UNSAVED = 74  # something could not be read or written now (EX_IOERR)
STOPPED = 75  # stopped by a signal, all is saved (EX_TEMPFAIL: try again)


def status_of(error: Exception) -> int | None:
    """The status of an error that is told in a line; None for a bug, which shows its traceback."""
    if isinstance(error, RequestError):
        return REFUSED
    passing = isinstance(error, OSError) and error.errno in PASSING
    return UNSAVED if passing or isinstance(error, StorageError) else None
