"""Files that are whole: the JSON beside a file of arrays that says of what it is (compared in
words), directories, lines, checksums; and where files are written."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import io
import json
import math
import os
from pathlib import Path
import re
import tempfile

import numpy as np

from beit_jax.errors import RequestError, StorageError, check

_LARGEST, _DEEPEST = 8 << 20, 64  # bytes and levels of a JSON that is ours or a small one of others


def write(path: Path, content: Mapping, indent: int | None = None) -> None:
    """Replaces the record as `replace` does."""
    replace(path, json.dumps(content, indent=indent) + '\n')


def replace(path: Path, text: str | bytes) -> None:
    """Replaces the content of a file; whoever is killed meanwhile leaves the old one."""
    temporary = path.with_name(path.name + '.new')
    temporary.write_bytes(text.encode() if isinstance(text, str) else text)
    os.replace(temporary, path)


def read_json(path: Path, remedy: str, largest: int = _LARGEST) -> dict:
    """The object in a small JSON file that someone may have damaged or made up: finite numbers,
    integers of 64 bits, text that can be written again, `largest` bytes and 64 levels at most.

    remedy: what to do about another file: 'remove it'.

    Raises:
      RequestError: it is not there, or not that.
      StorageError: it cannot be read now.
    """
    try:
        check(path.is_file(), f'{path} is not a file that is there: {remedy}.')
        with path.open('rb') as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise StorageError(f'{path} cannot be read: {error.strerror}.') from error
    try:
        if len(data) > largest:
            raise ValueError(f'it is larger than {largest} bytes')
        return json_object(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f'{path} is damaged ({str(error)[:200]}): {remedy}.') from error


def metric_lines(path: Path) -> tuple[list[dict], list[bytes]]:
    """([{'step': int, NAME: number or None}], [line that is none]) of a metrics.jsonl: see
    `lines_of`."""
    return lines_of(path, _metrics)


def lines_of(path: Path, parse: Callable[[bytes], dict]) -> tuple[list[dict], list[bytes]]:
    """(what `parse` makes of the lines of a file, lines of which it raises ValueError or
    RecursionError); a last line that a killed run left without its end is neither, and no file has
    none.

    Raises:
      StorageError: it cannot be read now.
    """
    try:
        *lines, _ = path.read_bytes().split(b'\n') if path.is_file() else [b'']
    except OSError as error:
        raise StorageError(f'{path} cannot be read: {error.strerror}.') from error
    rows, others = [], []
    for line in lines:
        try:
            rows.append(parse(line))
        except (ValueError, RecursionError):
            others.append(line + b'\n')
    return rows, others


def _metrics(line: bytes) -> dict:
    row = json_object(line)
    numbers = all(value is None or type(value) in (int, float) for value in row.values())
    if not numbers or type(row.get('step')) is not int:
        raise ValueError('no metrics of a step')
    return row


def json_object(data: bytes) -> dict:
    """A JSON object; ValueError or RecursionError where it is none that `read_json` takes."""
    content = json.loads(data, parse_int=_integer)
    if not isinstance(content, dict):
        raise ValueError('it is not a JSON object')
    _check_depth(content)
    # refuses infinity, NaN and halves of a pair of surrogates
    json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return content


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= 2**64:
        raise ValueError(f'an integer of {len(digits)} digits')
    return int(digits)


def _check_depth(content: dict) -> None:
    level = [content]
    for _ in range(_DEEPEST):
        groups = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for group in groups for item in group if isinstance(item, dict | list)]
    if level:
        raise ValueError(f'it is nested more than {_DEEPEST} levels deep')


def rows_header(dtype, shape: tuple[int, ...]) -> bytes:
    """What a .npy file of this dtype and shape begins with, as NumPy writes it."""
    header = io.BytesIO()
    entries = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(header, entries)
    return header.getvalue()


def rows_offset(path: Path, dtype, shape: tuple[int, ...]) -> int:
    """Where the numbers begin in a .npy file that NumPy wrote; ValueError where it is not one of
    this dtype and shape, or cut off. Its header is compared and not parsed: what is damaged would
    make NumPy stumble over the syntax of Python."""
    header = rows_header(dtype, shape)
    offset, count = len(header), math.prod(shape)
    with path.open('rb') as file:
        if file.read(offset) != header:
            raise ValueError(f'{path.name} does not begin as a {np.dtype(dtype)}{list(shape)}')
        size = os.fstat(file.fileno()).st_size
    if size != offset + np.dtype(dtype).itemsize * count:
        raise ValueError(f'{path.name} has {size:,} bytes, too few or too many')
    return offset


def differences(saved: Mapping, wanted: Mapping) -> list[str]:
    """'NAME was X, is Y' for each entry of `wanted` that `saved` has otherwise or not at all."""
    return [
        f'{name} was {_shortened(saved.get(name))}, is {_shortened(value)}'
        for name, value in wanted.items()
        if saved.get(name) != value
    ]


def _shortened(value) -> str:
    text = str(value)
    return text if len(text) <= 200 else f'{text[:200]} ...'


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def local_path(name: str, text: str) -> Path:
    """Where something is written; ~ is the home folder. `name`: the option or setting.

    Raises:
      RequestError: '', which would be the current folder, or an address like gs://bucket/folder or
        gs:/bucket/folder, which would make a folder `gs:` in it.
    """
    check(bool(text), f'{name} is empty: give a path. Is a variable of the shell unset?')
    address = '://' in text or re.match('[A-Za-z][A-Za-z0-9+.-]*:/', text)
    check(not address, f'{name}={text} is not local: give a local path.')
    return Path(os.path.expanduser(text))


def refuse_existing(path: Path) -> None:
    """Raises RequestError where there is something at `path` but an empty directory."""
    check(
        not path.exists() or (path.is_dir() and not any(path.iterdir())),
        f'{path} is there already: give another name, or remove it.',
    )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when all went well, and vanishes otherwise."""
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as temporary:
        inner = Path(temporary) / path.name
        yield inner
        os.replace(inner, path)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that takes the place of `path` when all went well, and vanishes
    otherwise: nothing is written half.

    Raises:
      RequestError: there is something at `path` already.
    """
    refuse_existing(path)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{path.name}.', dir=path.absolute().parent
    ) as temporary:
        inner = Path(temporary) / 'whole'
        inner.mkdir()
        yield inner
        os.replace(inner, path)  # an empty directory may stand there
