"""Written all or nothing: the JSON beside a file of arrays that says of what it is (compared in words), and directories."""
from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
import tempfile

from beit_jax.config import check


def write(path: Path, content: Mapping) -> None:
    """Replaces the record; whoever is killed meanwhile leaves the old one."""
    temporary = path.with_name(path.name + '.new')
    temporary.write_text(json.dumps(content) + '\n')
    os.replace(temporary, path)


def differences(saved: Mapping, wanted: Mapping) -> list[str]:
    """'NAME was X, is Y' for each entry of `wanted` that `saved` has otherwise or not at all."""
    return [f'{name} was {saved.get(name)}, is {value}' for name, value in wanted.items() if saved.get(name) != value]


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that takes the place of `path` when all went well, and vanishes otherwise: nothing is written half.

    Raises:
      RequestError: there is something at `path` already.
    """
    check(not path.exists() or (path.is_dir() and not any(path.iterdir())), f'{path} is there already: give another --output, or remove it.')
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.absolute().parent) as temporary:
        inner = Path(temporary) / 'whole'
        inner.mkdir()
        yield inner
        os.replace(inner, path)  # an empty directory may stand there
