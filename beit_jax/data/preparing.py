"""Pictures out of ImageNet's archives into folders, class tars or WebDataset shards, a unit (a
class, a shard) at a time. What was written stands in a manifest with its checksum, so that whoever
is killed goes on where it ended."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
import re
import shutil
import tarfile
import typing

import numpy as np
from tqdm import tqdm

from beit_jax import whole_files
from beit_jax.data.sampler import permutation
from beit_jax.data.sources.class_tars import PlacedSource
from beit_jax.errors import check, of_storage

LAYOUTS = ('folder', 'webdataset', 'class_tars')
_LINE = re.compile(rb'([0-9a-f]{64})  (.+)\n')  # as sha256sum writes and reads them
_HEAD = '# beit_jax.tools.prepare '
_ORDER_KEY = 20120419  # of the order in which shards hold what lies sorted by class
_JPEG = ('.jfif', '.jpe')
_IMAGES = ('jpg', 'jpeg', 'png', 'webp')  # what the readers of WebDataset know
_INFO, _CLASSES = '_info.json', 'classes.txt'


class Unit(typing.NamedTuple):
    """What is written as a whole: its path below the output, and the pictures in it."""

    name: str
    indices: np.ndarray


class Done(typing.NamedTuple):
    units: int
    found: int  # that an earlier call had written; they are as it wrote them


def prepare(
    source: PlacedSource, output: Path, part: str, layout: str, samples: int, ordered: bool
) -> Done:
    """Writes all pictures of `source` as `part` ('train', 'validation') of a data set in `output`.

    folder: PART/CLASS/NAME; class_tars: PART/CLASS.tar; webdataset: PART-000000.tar, ... of
    `samples` each, in a random order that is always the same unless `ordered`, with `_info.json`
    and `classes.txt`. PART is called PART.part until it is whole. `PART.sha256` has the sha256 of
    each tar; of a folder that of its files' names and sha256.

    Raises:
      RequestError: there is something else, or what was written has changed; a picture that cannot
        be read. StorageError: a full disk, and what else may pass.
    """
    manifest = output / f'{part}.sha256'
    of = {'layout': layout, 'pictures': source.fingerprint}
    if layout == 'webdataset':
        of |= {'samples': samples, 'ordered': ordered}
        units = _shards(source, part, samples, ordered)
    else:
        units = _classes(source, '.tar' * (layout == 'class_tars'))
    with _writing(output), _noted(manifest, of) as (checksums, note):
        final = root = output
        if layout == 'webdataset':
            _describe(output, part, units, source.class_names)
        else:
            final, root = output / part, output / f'{part}.part'
            root = final if final.exists() else root
            check(
                bool(checksums) or root != final or not any(final.iterdir()),
                f'{final} is there already: give another --output, or remove it.',
            )
        root.mkdir(exist_ok=True)
        found = 0
        for unit in tqdm(units, desc=f'writing {part}', disable=None, dynamic_ncols=True):
            path = root / unit.name
            if os.path.lexists(path):
                _verify(path, checksums.get(unit.name))
                found += 1
                continue
            temporary = _cleared(path.with_name(f'.{path.name}.part'))
            _write(source, temporary, unit.indices, layout)
            # first, so that nothing that is there is unknown
            note(unit.name, checksum(temporary))
            os.replace(temporary, path)
        os.replace(root, final)
    return Done(len(units), found)


def checksum(path: Path) -> str:
    """sha256 of a file; of a folder that of the lines that `sha256sum` has of its files, sorted."""
    if path.is_file():
        return whole_files.sha256(path)
    files = sorted(file for file in path.rglob('*') if file.is_file())
    lines = (f'{whole_files.sha256(file)}  {file.relative_to(path)}\n' for file in files)
    return hashlib.sha256(b''.join(map(os.fsencode, lines))).hexdigest()


def _classes(source, ending) -> list[Unit]:
    labels = np.array([source.label(index) for index in range(len(source))])
    parts = np.split(np.arange(len(labels)), np.flatnonzero(np.diff(labels)) + 1)
    # by the name that the archive has
    return [Unit(source.file(int(part[0])).partition('/')[0] + ending, part) for part in parts]


def _shards(source, part, samples, ordered) -> list[Unit]:
    count = len(source)
    order = np.arange(count) if ordered else permutation(count, _ORDER_KEY, 0)
    return [
        Unit(f'{part}-{number:06}.tar', order[start : start + samples])
        for number, start in enumerate(range(0, count, samples))
    ]


def _write(source, path, indices, layout):
    if layout != 'folder':
        # members are as they are on any day, by anyone
        with tarfile.open(path, 'w', encoding='utf-8', errors='surrogateescape') as tar:
            for name, data in _members(source, indices, layout):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return
    for name, data in _members(source, indices, layout):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _members(source, indices, layout) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a unit."""
    for index in map(int, indices):
        with _reading():
            image, label = source.read(index)
        name = source.file(index)
        if layout != 'webdataset':
            yield name.partition('/')[2], image
            continue
        ending = os.path.splitext(name)[1].lower()
        ending = 'jpg' if ending in _JPEG else ending[1:]
        check(
            ending in _IMAGES,
            f'{source.name(index)}: webdataset shards take {", ".join(_IMAGES)}: give another '
            '--layout.',
        )
        # names may have dots, which would end a key
        yield f'{index:08}.{ending}', image
        yield f'{index:08}.cls', b'%d' % label
        yield f'{index:08}.json', json.dumps({'filename': name, 'label': label}).encode()


def _describe(output, part, units, class_names):
    """What WebDataset and `WebDatasetSource` know of the shards, before they are there: so nobody
    takes half of them for all."""
    info, names = output / _INFO, ''.join(f'{name}\n' for name in class_names)
    splits = whole_files.read_json(info, 'remove it')['splits'] if info.exists() else {}
    there = output / _CLASSES
    check(
        not there.exists() or there.read_text() == names,
        f'{there} names other classes than those of {part}: give another --output, or --train and '
        '--val together.',
    )
    split = {
        'filenames': [unit.name for unit in units],
        'shard_lengths': [len(unit.indices) for unit in units],
        'num_samples': sum(len(unit.indices) for unit in units),
    }
    check(
        splits.get(part, split) == split,
        f'{info} has another {part}: give another --output, or remove what is there.',
    )
    whole_files.replace(there, names)
    whole_files.write(info, {'splits': splits | {part: split}}, indent=1)


@contextlib.contextmanager
def _noted(path: Path, of: dict):
    """({unit: its sha256}, a function that notes one more) of a manifest that begins with what it
    is `of`; for this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f'{_HEAD}{json.dumps(of)}\n'.encode()
    with path.open('a+b') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check(False, f'{path}: another process writes there: wait, or give another --output.')
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        first, checksums, end = file.readline(), {}, len(head)
        check(
            head.startswith(first),
            f'{path} is of other pictures, or of another --layout, --samples or --ordered: give '
            'another --output, or remove what is there.',
        )
        for line in file if first == head else ():
            if not (entry := _LINE.fullmatch(line)):
                break
            checksums[os.fsdecode(entry[2])] = entry[1].decode()
            end += len(line)
        if first != head:
            file.truncate(0)
            file.write(head)
        file.truncate(end)  # half a line

        def note(name, sha256):
            file.write(os.fsencode(f'{sha256}  {name}\n'))
            file.flush()

        file.flush()
        yield checksums, note


def _verify(path, expected):
    check(
        expected is not None,
        f'{path} is there already, and this command has not written it: give another --output, or '
        'remove it.',
    )
    check(
        checksum(path) == expected,
        f'{path} is not what was written (its sha256 is another): remove it, and the same command '
        'writes it again.',
    )


def _cleared(path: Path) -> Path:
    """Without what a killed process has left there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _writing(output):
    try:
        yield
    except OSError as error:
        where = error.filename or output
        message = f'{where} cannot be written ({error.strerror}): make room or mend it; the same '
        raise of_storage(error, f'{message}command goes on where it ended.') from error


@contextlib.contextmanager
def _reading():
    try:
        yield
    except OSError as error:
        raise of_storage(error, f'{error}: download it again; the same command goes on.') from error
