"""Files that are whole: the JSON beside a file of arrays that says of what it is (compared in
words), directories, lines, checksums."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import os
from pathlib import Path
import tempfile

from beit_jax.errors import check


def write(path: Path, content: Mapping, indent: int | None = None) -> None:
    """Replaces the record as `replace` does."""
    replace(path, json.dumps(content, indent=indent) + '\n')


def replace(path: Path, text: str) -> None:
    """Replaces the content of a file; whoever is killed meanwhile leaves the old one."""
    temporary = path.with_name(path.name + '.new')
    temporary.write_text(text)
    os.replace(temporary, path)


def differences(saved: Mapping, wanted: Mapping) -> list[str]:
    """'NAME was X, is Y' for each entry of `wanted` that `saved` has otherwise or not at all."""
    return [
        f'{name} was {saved.get(name)}, is {value}'
        for name, value in wanted.items()
        if saved.get(name) != value
    ]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file with their ends, but for a last one that a killed run left without; []
    where there is no file."""
    return [
        line
        for line in (path.read_text().splitlines(keepends=True) if path.is_file() else ())
        if line.endswith('\n')
    ]


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that takes the place of `path` when all went well, and vanishes
    otherwise: nothing is written half.

    Raises:
      RequestError: there is something at `path` already.
    """
    check(
        not path.exists() or (path.is_dir() and not any(path.iterdir())),
        f'{path} is there already: give another --output, or remove it.',
    )
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{path.name}.', dir=path.absolute().parent
    ) as temporary:
        inner = Path(temporary) / 'whole'
        inner.mkdir()
        yield inner
        os.replace(inner, path)  # an empty directory may stand there
