"""A work directory in an object store, `gs://bucket/folder` or `s3://bucket/folder`.

The run works in a local folder, as every run does, and what it leaves is copied to the store while
it goes on. An object is replaced whole or not at all, so nothing is appended or renamed there:

- `metrics.jsonl` and the like are written anew where they have changed, before the checkpoints;
- of a checkpoint what says that it is whole goes up last, and goes away first;
- `run.lock` is an object, made only where there is none; its holder raises its count.

At a start the store is what counts: the local folder is taken only where it is what was copied.
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re
import shutil
import signal
import sys
import threading

import jax

from beit_jax import whole_files
from beit_jax.errors import RequestError, StorageError, check, of_storage
from beit_jax.remote import file_system, is_remote
from beit_jax.train.processes.agreement import gathered, together
from beit_jax.train.workdir.directory import check_workdir
from beit_jax.train.workdir.lock import FILE as LOCK
from beit_jax.train.workdir.lock import Lock

STORES = ('gs', 's3')
EVERY = 10.0  # seconds from one copy of what has changed to the next
RECORD = '.store.json'  # in the local folder: {name: [size, time]} of what was copied
_HERE = ('compiled', 'tokens', LOCK)  # what stays local: caches, which a start makes anew
_TAKEN = re.compile(r'config\.json|metrics\.jsonl(\.damaged)?|checkpoints/(0|[1-9]\d*)/.*')
_WHOLE = ('_CHECKPOINT_METADATA', 'commit_success.txt')  # of a checkpoint, in this order


@contextlib.contextmanager
def opened(text: str) -> Iterator[Path]:
    """The local folder of --workdir: itself, or that of a store, whose run has the store until the
    block ends and everything is copied.

    Raises:
      RequestError: no name of a work directory, or a store that cannot be written.
      StorageError: another run has it, it does not answer, or not everything could be copied.
    """
    if not is_remote(text):
        with together():
            folder = whole_files.local_path('--workdir', text)
            check_workdir(folder)
        yield folder
        return
    with together():
        folder = _local_folder(text)
        check_workdir(folder)
    check(
        len(set(gathered(_machine()))) == 1,
        f'--workdir={text}: a run of several hosts takes a folder that all of them see, as that '
        'bucket where it is mounted.',
    )
    with contextlib.closing(Lock(StorePath(text))) as lock:
        mirror = Mirror(text, folder, lock)
        with together():
            if jax.process_index() == 0:
                mirror.pull()
        with contextlib.closing(mirror):
            yield folder


def _local_folder(text: str) -> Path:
    scheme, _, path = text.partition('://')
    parts = path.rstrip('/').split('/')
    check(
        scheme in STORES,
        f'--workdir={text}: give a local path, or one of {"://, ".join(STORES)}://.',
    )
    check(
        not {'', '.', '..'} & set(parts),
        f'--workdir={text} is not {scheme}://BUCKET/FOLDER.',
    )
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(cache, 'beit_jax', scheme, *parts)


def _machine() -> str:
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return os.uname().nodename


class StorePath:
    """An object of a store, as far as `Lock` asks what pathlib.Path has."""

    def __init__(self, text: str):
        self._text = text.rstrip('/')

    def __str__(self):
        return self._text

    def __truediv__(self, name: str):
        return StorePath(f'{self._text}/{name}')

    @property
    def parent(self):
        return StorePath(self._text.rpartition('/')[0])

    def mkdir(self, **_) -> None:
        """A store has no folders."""

    def touch(self, exist_ok: bool) -> None:
        with file_system(self._text) as (system, path):
            try:
                system.pipe_file(path, b'', mode='overwrite' if exist_ok else 'create')
            except OSError as error:  # not every store says why
                if not exist_ok and system.exists(path):
                    raise FileExistsError(path) from error
                raise

    def read_bytes(self) -> bytes:
        with file_system(self._text) as (system, path):
            return system.cat_file(path)

    def write_bytes(self, content: bytes) -> None:
        with file_system(self._text) as (system, path):
            system.pipe_file(path, content)

    def open(self, _):
        """To be written whole, once it is closed."""
        with file_system(self._text) as (system, path):
            return system.open(path, 'wb')

    def unlink(self) -> None:
        with file_system(self._text) as (system, path):
            system.rm_file(path)


class Mirror:
    """A local folder and the work directory in a store that it is copied to."""

    def __init__(self, url: str, folder: Path, lock: Lock):
        self._url, self._folder, self._lock = url.rstrip('/'), folder, lock
        self._copied, self._thread, self._closed = {}, None, threading.Event()

    def pull(self) -> None:
        """Makes the local folder what is in the store, and begins to copy what changes.

        Raises:
          RequestError, StorageError: the store cannot be read, or the folder not be written.
        """
        try:
            self._pull()
        except OSError as error:
            where = f' ({error.filename})' if error.filename else ''
            message = f'--workdir={self._url} cannot be read: {error.strerror or error}{where}.'
            raise of_storage(error, message) from error
        self._thread = threading.Thread(target=self._keep_copying, daemon=True)
        self._thread.start()

    def _pull(self):
        (there, torn), record = self._in_store(), self._folder / RECORD
        for name in torn:
            self._remove_object(name)
        with contextlib.suppress(RequestError):  # none, or not what was written
            self._copied = {
                name: tuple(facts)
                for name, facts in whole_files.read_json(record, '', largest=1 << 28).items()
            }
        copied = {name: size for name, (size, _) in self._copied.items() if _TAKEN.fullmatch(name)}
        if copied == there and all((self._folder / name).is_file() for name in there):
            return
        record.unlink(missing_ok=True)
        for entry in self._folder.iterdir() if self._folder.is_dir() else ():
            if entry.name not in _HERE:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._copied = {}
        for name in there:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_system(f'{self._url}/{name}') as (system, own_path):
                system.get_file(own_path, str(path))
            self._copied[name] = _facts(path)
        self._write_record()

    def _in_store(self) -> tuple[dict[str, int], list[str]]:
        """({name: size} of what a run goes on with, names of checkpoints that are not whole)."""
        with file_system(self._url) as (system, own_path):
            found = system.find(own_path, detail=True).items()
        own_path = own_path.rstrip('/') + '/'
        sizes = {path.removeprefix(own_path): entry['size'] for path, entry in found}
        taken = {name: size for name, size in sizes.items() if _TAKEN.fullmatch(name)}
        whole = {_step(name) for name in taken if _of_whole(name) == 1}
        torn = [name for name in taken if name.startswith('check') and _step(name) not in whole]
        return {name: size for name, size in taken.items() if name not in torn}, torn

    def push(self) -> None:
        """Copies what has changed since the last time.

        Raises:
          OSError: the store does not take it.
          StorageError: another run has taken the store.
        """
        self._lock.check()
        # checkpoints are looked for before the lines of their steps are read
        here = self._in_folder()
        changed = [name for name, facts in here.items() if self._copied.get(name) != facts]
        gone = [
            name for name in self._copied.keys() - here.keys() if name.startswith('checkpoints/')
        ]
        spoiled = {_step(name) for name in [*changed, *gone] if name.startswith('checkpoints/')}
        try:
            for step in spoiled:
                for name in reversed(_WHOLE):
                    self._remove(f'{step}/{name}')
            torn = set()
            changed += [name for name in here if _step(name) in spoiled and name not in changed]
            for name in sorted(changed, key=_order):
                if _step(name) not in torn and not self._put(name, here[name]):
                    torn.add(_step(name))  # it is being removed
            for name in gone:
                self._remove(name)
        finally:
            self._write_record()

    def _in_folder(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, folders, names in os.walk(self._folder):
            top = Path(folder) == self._folder
            folders[:] = [
                name
                for name in folders
                if not name.startswith('.')
                and '.orbax-checkpoint-tmp' not in name
                and not (top and name in _HERE)
            ]
            for name in names:
                path = Path(folder, name)
                if not (name.startswith('.') or name.endswith('.new') or (top and name in _HERE)):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found[path.relative_to(self._folder).as_posix()] = _facts(path)
        return found

    def _put(self, name: str, facts: tuple[int, int]) -> bool:
        """Whether the file was there to be copied."""
        path = self._folder / name
        with file_system(f'{self._url}/{name}') as (system, own_path):
            try:
                system.put_file(str(path), own_path)
            except FileNotFoundError:
                if path.exists():
                    raise
                return False
        self._copied[name] = facts
        return True

    def _remove(self, name: str) -> None:
        if name in self._copied:
            self._remove_object(name)
            del self._copied[name]

    def _remove_object(self, name: str) -> None:
        url, gone = f'{self._url}/{name}', contextlib.suppress(FileNotFoundError)
        with file_system(url) as (system, own_path), gone:
            system.rm_file(own_path)

    def _write_record(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        whole_files.write(self._folder / RECORD, self._copied)

    def _keep_copying(self):
        warned = False
        while not self._closed.wait(EVERY):
            try:
                self.push()
                warned = False
            except StorageError:  # said when the run ends, which it does now
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError as error:
                if not warned:
                    print(
                        f'WARNING: {self._url} cannot be written ({error.strerror or error}): make '
                        f'room; what is not there is kept in {self._folder} until then',
                        flush=True,
                    )
                warned = True

    def close(self) -> None:
        """Copies what is left.

        Raises:
          StorageError: not everything is in the store.
        """
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        try:
            self.push()
        except OSError as error:
            raise StorageError(
                f'{self._url} cannot be written ({error.strerror or error}): what is not there is '
                f'in {self._folder}. Make room; the same command on this machine goes on from '
                'there.'
            ) from error
        print(f'{self._url} has all of it', file=sys.stderr)


def _facts(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _step(name: str) -> str:
    """checkpoints/STEP of a file in it."""
    return '/'.join(name.split('/')[:2])


def _of_whole(name: str) -> int:
    """From 1 where it says that a checkpoint is whole, else 0."""
    *folders, last = name.split('/')
    return _WHOLE.index(last) + 1 if last in _WHOLE and len(folders) == 2 else 0


def _order(name: str) -> tuple:
    """Lines before the checkpoints, and what makes one whole last."""
    return name.startswith('checkpoints/'), _step(name), _of_whole(name), name
