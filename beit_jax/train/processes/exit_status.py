"""How a run that is not done ends, for what starts it again (docs/runs.md); as in sysexits.h."""

HUNG = 70  # a step did not end in time (EX_SOFTWARE)
UNSAVED = 74  # a checkpoint or metrics could not be written (EX_IOERR)
STOPPED = 75  # stopped by a signal, all is saved (EX_TEMPFAIL: try again)
