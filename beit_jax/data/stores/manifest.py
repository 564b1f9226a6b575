"""Lists of what a data set holds, made by one look at all of it and kept in a folder, from which
they open at once.

A list is a few arrays and facts. It is made by many tasks side by side (a folder each, a shard
each). Kept, it is one file: a line of JSON that says what it is a list of, then the arrays,
memory-mapped; each of the two has a checksum. While it is made, a file beside it, `.part`, has a
whole line of JSON for each task that is done, so that whoever is killed goes on from there, and is
locked, so that one process makes it and others wait.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import json
import mmap
import os
from pathlib import Path
import queue
import sys
import time
import typing
import zlib

import numpy as np
import tqdm

from beit_jax.errors import RequestError, check, of_storage

Arrays = dict[str, np.ndarray]
FORMAT = 'beit_jax list 2'
WORKERS = 16  # looks at once: they wait for the storage, not for a core
SLOW = 20.0  # seconds between lines about progress, and after which a list is worth keeping


class Task(typing.NamedTuple):
    """What looking at one task gave."""

    more: list[str]  # tasks that came to light
    count: int  # of examples, for the progress
    found: list  # what JSON can hold


def open_list(
    index: str,
    of: Mapping[str, str],
    tasks: Iterable[str],
    look: Callable[[str], Task],
    pack: Callable[[Iterator[tuple[str, list]]], tuple[dict, Arrays]],
) -> tuple[dict, Arrays]:
    """(facts, arrays) of the data set `of`: read from the folder `index`, or made; and kept there
    unless it is ''.

    Args:
      of: which data set, and what of it; a list of anything else is another list. `path` is what
        messages name.
      tasks: the first ones; more come from looking at them.
      look: looks at one task; called from many threads.
      pack: ((task, what was found), ... sorted by task) -> (facts that JSON can hold, arrays of one
        dimension).

    Raises:
      RequestError: what `look` and `pack` refuse; the list kept is damaged or of another data set;
        `index` cannot be written.
    """
    if not index:
        began = time.monotonic()
        made = _make(io.BytesIO(), of['path'], tasks, look, pack)
        seconds = time.monotonic() - began
        if seconds > SLOW:
            _say(
                f'listing {of["path"]} took {seconds:.0f} s: --config.data.index=DIR keeps the '
                'list in a folder DIR, and the next start opens it at once'
            )
        return made
    path = list_path(index, of)
    if not path.exists():
        try:
            with _locked(path.with_suffix('.part')) as spool:
                if not path.exists():  # another process has made it meanwhile
                    write(path, of, *_make(spool, of['path'], tasks, look, pack))
        except OSError as error:
            raise of_storage(
                error,
                f'config.data.index={index!r} cannot be written ({error.strerror}): give a folder '
                'of your own.',
            ) from error
    return read(path, of)


def list_path(index: str, of: Mapping[str, str]) -> Path:
    """Where the list of `of` is kept."""
    name = os.path.basename(of['path'].rstrip('/'))[:60]
    which = hashlib.sha256(json.dumps([FORMAT, dict(of)]).encode()).hexdigest()[:16]
    return Path(index) / f'{name}-{which}.list'


def write(path: Path, of: Mapping[str, str], facts: dict, arrays: Arrays) -> None:
    """Keeps a list; whoever is killed meanwhile leaves none."""
    kinds, parts, checksum = {}, [], 0
    for name, array in arrays.items():
        kinds[name] = [array.dtype.str, len(array)]
        parts += [array.data.cast('B'), bytes(-array.nbytes % 8)]
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    header = {'format': FORMAT, 'of': dict(of), 'facts': facts, 'arrays': kinds, 'crc': checksum}
    line = _line(header)
    line = line[:-1] + b' ' * (-len(line) % 8) + b'\n'
    temporary = path.with_suffix('.new')
    with temporary.open('wb') as file:
        file.writelines([line, *parts])
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path: Path, of: Mapping[str, str]) -> tuple[dict, Arrays]:
    """(facts, arrays) of a list that `write` has kept; the arrays are read-only and stay on disk
    until they are used."""
    arrays, remedy = {}, 'Remove it: the next start makes it anew.'
    try:
        with path.open('rb') as file:
            line = file.readline()
            header, whole = _content(line), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with memoryview(whole) as data, data[len(line) :] as rest:
            sound = header['crc'] == zlib.crc32(rest)
        check(sound, f'{path} is damaged: its arrays are not what was written. {remedy}')
        known, position = header['of'] if header['format'] == FORMAT else None, len(line)
        for name, (dtype, length) in header['arrays'].items():
            arrays[name] = np.frombuffer(whole, dtype, length, position)
            position += arrays[name].nbytes + -arrays[name].nbytes % 8
        check(
            position == len(whole),
            f'{path} is damaged: it has {len(whole)} bytes, not {position}. {remedy}',
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f'{path} is damaged ({str(error)[:200]}). {remedy}') from error
    check(known == dict(of), f'{path} is a list of {known}, not of {dict(of)}. {remedy}')
    return header['facts'], arrays


def _line(content) -> bytes:
    """A line of JSON and its checksum."""
    text = json.dumps(content).encode()
    return b'%s %d\n' % (text, zlib.crc32(text))


def _content(line: bytes):
    """What `_line` wrote; ValueError where it is not whole, or not what was written."""
    text, _, checksum = line.rstrip().rpartition(b' ')
    if not line.endswith(b'\n') or checksum != b'%d' % zlib.crc32(text):
        raise ValueError('a line is not what was written')
    return json.loads(text)


def _say(text):
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(path: Path):
    """The spool `path`, made with its folder where there is none, for this process alone; it is
    removed when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b') as spool:
        try:
            fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f'waiting for another process, which makes {path.with_suffix(".list")}')
            fcntl.flock(spool, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield spool
        path.unlink(missing_ok=True)


def _make(spool, path, tasks, look, pack):
    """(facts, arrays) out of all tasks: those that the `spool` says are done, and the others."""
    places, pending, count = _done(spool, tasks)
    with _Progress(f'listing {path}', count) as progress:
        for task, result in _look_at_all(pending, look):
            places[task] = spool.seek(0, os.SEEK_END)  # and writes the line before to the disk
            spool.write(_line([task, *result]))
            progress.add(result.count)

    def found():
        for task in sorted(places):
            spool.seek(places[task])
            yield task, _content(spool.readline())[-1]

    try:
        return pack(found())
    except RequestError:  # what was found is of no use: the next start looks again
        spool.truncate(0)
        raise


def _done(spool, tasks):
    """(task -> its place in the spool, tasks that are not done, examples counted); half a line and
    what follows it is cut off."""
    places, tasks, count, end = {}, list(tasks), 0, 0
    spool.seek(0)
    for line in spool:
        try:
            task, more, number, _ = _content(line)
        except ValueError:
            break
        places[task] = end
        tasks += more
        count += number
        end += len(line)
    spool.truncate(end)
    return places, [task for task in tasks if task not in places], count


def _look_at_all(pending, look):
    """(task, what `look` gave) of the tasks `pending` and of all that come to light, as they are
    done; few are held at once."""

    def look_at(task):
        return task, look(task)

    finished, running, pool = queue.SimpleQueue(), 0, concurrent.futures.ThreadPoolExecutor(WORKERS)
    try:
        while pending or running:
            while pending and running < 2 * WORKERS:
                future = pool.submit(look_at, pending.pop())
                future.add_done_callback(finished.put)
                running += 1
            task, result = finished.get().result()
            running -= 1
            pending += result.more
            yield task, result
    finally:
        pool.shutdown(cancel_futures=True)


class _Progress:
    """A bar on a terminal, else a line now and then; neither where all is done soon."""

    def __init__(self, title: str, count: int):
        self._title, self._count, self._next = title, count, time.monotonic() + SLOW
        self._bar = tqdm.tqdm(
            desc=title,
            initial=count,
            unit=' examples',
            unit_scale=True,
            delay=1,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self):
        return self

    def add(self, count: int) -> None:
        self._bar.update(count)
        self._count += count
        if self._bar.disable and time.monotonic() > self._next:
            _say(f'{self._title}: {self._count:,} examples so far')
            self._next = time.monotonic() + SLOW

    def __exit__(self, *_):
        self._bar.close()
