"""One run at a time in a work directory: `run.lock` says who has it.

A line of it names the holder, a second one is a count that the holder raises every few seconds. A
run that was killed leaves it behind without harm: on the same machine the process is looked for,
from elsewhere the count is watched for a while. No clock is compared with another, and no lock is
asked of the file system, for not every one over a network has them.
"""

import contextlib
import json
import os
from pathlib import Path
import socket
import threading
import time

import jax

from beit_jax.errors import StorageError
from beit_jax.train.processes.agreement import together
from beit_jax.train.workdir.directory import writing

FILE = 'run.lock'  # in a work directory
BEAT = 5.0  # seconds from one count to the next
PATIENCE = 6  # counts that may fail to come


class Lock:
    """A work directory that is this run's from now on until `close`; of several processes the
    first one holds it for all."""

    def __init__(self, workdir: Path):
        """Makes the work directory.

        Raises:
          StorageError: another run has it: the same command may go on after that.
          RequestError, StorageError: it cannot be written.
        """
        self._path, self._count, self._closed = workdir / FILE, 0, threading.Event()
        self._me = {'host': socket.gethostname(), 'process': os.getpid()}
        self._me |= {'machine': _machine(), 'started': _started(os.getpid())}
        self._first = jax.process_index() == 0
        with together():
            if self._first:
                with writing(workdir):
                    self._take()
        if self._first:
            threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Before anything is saved: raises StorageError where another run has taken over, because
        this one was not heard of."""
        holder = _holder(self._read()) if self._first else None
        if holder and holder != self._me:
            raise StorageError(
                f'{self._path.parent} was taken over by {_words(holder)}, for this run was not '
                'heard of in time: it saves nothing more.'
            )

    def close(self) -> None:
        self._closed.set()
        if self._first and _holder(self._read()) == self._me:
            with contextlib.suppress(OSError):  # left behind, it is in nobody's way
                self._path.unlink()

    def _take(self):
        try:
            self._path.touch(exist_ok=False)
            was_there = False
        except FileExistsError:
            self._wait_until_free()
            was_there = True
        try:
            self._path.write_bytes(self._content())
        except OSError:  # without a name in it, it would stand in the way of the next start
            self._path.unlink()
            raise
        if was_there:  # of two who found it left behind at once, the last one has it
            time.sleep(0.2)
            self._refuse_other(self._read())

    def _wait_until_free(self):
        found = self._read()
        holder = _holder(found)
        if holder and holder['machine'] and holder['machine'] == self._me['machine']:
            if holder['started'] == _started(holder['process']):
                self._refuse_other(found)
            return
        print(
            f'{self._path.parent} was in use by {_words(holder)}: waiting for a sign of it, '
            f'{PATIENCE * BEAT:.0f} s at most',
            flush=True,
        )
        for _ in range(PATIENCE):
            time.sleep(BEAT)
            now = self._read()
            if now != found:
                self._refuse_other(now)

    def _refuse_other(self, found: bytes):
        holder = _holder(found)
        if found and holder != self._me:
            raise StorageError(
                f'{self._path.parent} is in use by {_words(holder)}: wait for that run, or give '
                'another --workdir.'
            )

    def _beat(self):
        while not self._closed.wait(BEAT):
            if _holder(self._read()) == self._me:
                self._count += 1
                try:
                    with self._path.open('r+b') as file:
                        file.write(self._content())
                except OSError:  # what the run saves will tell
                    continue

    def _content(self) -> bytes:
        """Of the same length at all times: it is written in place."""
        return f'{json.dumps(self._me)}\n{self._count:012}\n'.encode()

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError:  # gone, or storage that does not answer
            return b''


def _holder(content: bytes) -> dict | None:
    """Who is named, None where nobody is: a file that is torn or not ours."""
    try:
        found = json.loads(content.split(b'\n')[0])
        return {name: found[name] for name in ('host', 'process', 'machine', 'started')}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _words(holder: dict | None) -> str:
    return f'process {holder["process"]} on {holder["host"]}' if holder else 'another run'


def _machine() -> str:
    """The start of this machine and the set of processes that are seen here; '' where they are not
    to be known."""
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return ''


def _started(process: int) -> int | None:
    """When a process of this machine began, in its own count; None where there is none that
    runs."""
    try:
        _, _, rest = Path(f'/proc/{process}/stat').read_text().rpartition(')')
    except OSError:
        return None
    state, *numbers = rest.split()
    return None if state in 'ZX' else int(numbers[18])
