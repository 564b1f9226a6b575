"""A run that is opened by all of its processes alike, or by none: settings, code, data and work
directory are compared before the first step, and before anything is written."""

import contextlib
import hashlib
from pathlib import Path
import secrets
import time

import jax

import beit_jax
from beit_jax.errors import check
from beit_jax.settings.overrides import flat
from beit_jax.settings.run import RunConfig
from beit_jax.train.processes.agreement import check_same, gathered, together
from beit_jax.train.run import Run
from beit_jax.train.workdir.changes import is_among, settings_of
from beit_jax.train.workdir.directory import writing
from beit_jax.train.workdir.launches import versions
from beit_jax.train.workdir.pinned import pinned

# What may differ from host to host, for it changes neither a result nor when they meet.
HOST_SETTINGS = (
    'profile',
    'data.path',
    'data.evaluate_path',
    'data.index',
    'data.workers',
    'data.prefetch',
    'tokenizer.path',
    'tokenizer.cache_path',
)
_WAIT = 20.0  # seconds, for a file that another host has written: NFS tells of it late


def open_run(config: RunConfig, workdir: Path, mode: str) -> Run:
    """The run of `config`; `mode`: what is done with it, as --mode says.

    Raises:
      RequestError: settings, data and devices that do not fit one another, or are not the same on
        every host; weights that the hub does not have.
      StorageError: data, or the hub, cannot be read now.
    """
    config = pinned(config, workdir)
    given = {f'config.{name}': value for name, value in flat(settings_of(config)).items()}
    check_same(
        {'--mode': mode, 'config': type(config).__module__}
        | {name: value for name, value in given.items() if not is_among(name[7:], HOST_SETTINGS)}
        | _code()
    )
    with together():
        run = Run(config, workdir)
    check_same(_data(run))
    return run


def check_shared(workdir: Path) -> None:
    """Refuses a work directory that is not one folder for all hosts.

    Raises:
      RequestError: a host does not see what host 0 writes there.
    """
    if jax.process_count() == 1:
        return
    first, there = jax.process_index() == 0, workdir.exists()
    file = workdir / f'.seen-by-all-{gathered(secrets.token_hex(8))[0]}'
    try:
        with together():
            if first:
                with writing(workdir):
                    file.touch()
        with together():
            deadline = time.monotonic() + _WAIT
            while not (seen := file.exists()) and time.monotonic() < deadline:
                time.sleep(0.2)
            check(
                seen,
                f'--workdir={workdir} is another folder here than on host 0, which wrote a file '
                'that is not seen here: give a folder that all hosts see.',
            )
    finally:
        if first:
            file.unlink(missing_ok=True)
            if not there:
                with contextlib.suppress(OSError):  # it is in use
                    workdir.rmdir()


def _code() -> dict[str, str]:
    """Versions; that of this package by its sources, which people change."""
    root, sources = Path(beit_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        sources.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    named = {f'the version of {name}': number for name, number in versions().items()}
    return {'the code of beit_jax': sources.hexdigest()[:12]} | named


def _data(run: Run) -> dict:
    """What the hosts found where the settings led them."""
    facts = {f'data: {name}': value for name, value in run.fingerprint.items()}
    held_out = run.held_out
    return facts | {
        'data: held-out examples': len(held_out) if held_out else 0,
        'data: held-out manifest': held_out.fingerprint if held_out else '',
    }
