"""Where a tool writes: looked at before the work starts. No tool writes over what it reads."""

from collections.abc import Mapping
import os
from pathlib import Path

from beit_jax import whole_files
from beit_jax.data.config import ENDINGS
from beit_jax.errors import check
from beit_jax.whole_files import local_path, refuse_existing

PICTURE = ('.png', '.jpg', '.jpeg')  # of pictures that are written
# how the names of files end that tools read in a folder that they are given
_READ = (*ENDINGS, 'tokenizer.json', '.safetensors', 'config.json', 'info.json', 'features.json')


def file(option: str, text: str | None, inputs=(), endings: tuple[str, ...] = ()) -> Path | None:
    """The path of a file to write, which may replace one that is no input; None where the option is
    not given.

    Args:
      inputs: paths of files and folders that are read; '' and None count for nothing.
      endings: what its name may end in; (): anything.

    Raises:
      RequestError: not local, a folder, a place where nothing can be written, or an input.
    """
    if text is None:
        return None
    path = local_path(option, text)
    check(
        not endings or path.suffix.lower() in endings,
        f'{option}={text}: give a file that ends in {" or ".join(endings)}.',
    )
    check(not path.is_dir(), f'{option}={text} is a folder: give the name of a file in it.')
    _check_writable(option, path)
    for read in map(Path, filter(None, inputs)):
        among = read.is_dir() and path.name.lower().endswith(_READ) and _lies_in(path, read)
        check(
            not path.exists() or not (among or (read.exists() and path.samefile(read))),
            f'{option}={text} is read, as {read}: it would be written over. Give another {option}.',
        )
    return path


def folder(option: str, text: str | None, inputs=(), new: bool = False) -> Path | None:
    """The path of a folder to write files into; it may be there, unless it is to be `new`. None
    where the option is not given.

    Raises:
      RequestError: not local, a file, a place where nothing can be written, or in a folder of
        `inputs`, whose pictures the files would be.
    """
    if text is None:
        return None
    path = local_path(option, text)
    check(not path.exists() or path.is_dir(), f'{option}={text} is a file: give a folder.')
    _check_writable(option, path)
    if new:
        refuse_existing(path)
    for read in map(Path, filter(None, inputs)):
        check(
            not read.is_dir() or not _lies_in(path, read),
            f'{option}={text} lies in {read}, which is read: give a folder outside it.',
        )
    return path


def write(path: Path | None, figures: Mapping, indent: int | None = None) -> None:
    """A JSON, where it is asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(path, figures, indent)


def _check_writable(option: str, path: Path) -> None:
    """Refuses a path that cannot be written or made."""
    there = path.absolute()
    while not os.path.lexists(there):
        there = there.parent
    check(
        there == path.absolute() or there.is_dir(),
        f'{option}={path}: {there} is no folder.',
    )
    check(os.access(there, os.W_OK), f'{option}={path}: {there} cannot be written (permission).')


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
