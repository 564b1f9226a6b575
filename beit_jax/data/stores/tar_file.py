"""One tar (ustar, GNU or PAX), looked through once for where its files lie."""

from collections.abc import Iterator
import contextlib
import tarfile
import threading
import typing

from beit_jax.data.stores import storage
from beit_jax.errors import check, of_storage

PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')  # names of compressed ones
# first bytes of gzip, bzip2, xz and zstandard
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')
# Local tars that are looked through at once: threads beyond these wait for the interpreter more
# than for the disk, and hold one another up.
_LOCAL = threading.BoundedSemaphore(2)


class Member(typing.NamedTuple):
    """A file in a tar: its path there, and where it lies, in bytes."""

    name: str
    length: int
    offset: int


def refuse_packed(folder: str, where: str) -> None:
    """Raises RequestError, which begins with `where`, for a folder that holds compressed tars."""
    packed = [name for name, _ in storage.list_folder(folder, PACKED)[1]]
    check(
        not packed,
        f'{where}: {packed and packed[0]} is compressed, so that nothing in it can be found: '
        'gunzip all of them.',
    )


@contextlib.contextmanager
def reading(path: str, where: str) -> Iterator[typing.BinaryIO]:
    """Opens a tar; what cannot be read in it is an error in a line, which begins with `where`."""
    limit = contextlib.nullcontext() if storage.is_remote(path) else _LOCAL
    try:
        with limit, storage.opened(path) as file:
            yield file
    except (OSError, tarfile.TarError, ValueError) as error:
        raise of_storage(error, f'{where} cannot be read ({error}).') from error


def members(file: typing.BinaryIO, begin: int, end: int) -> Iterator[Member]:
    """The regular files of the tar that lies from byte `begin` to `end` of a file, in order, their
    places counted from the beginning of the file.

    Raises:
      ValueError, tarfile.TarError: it is compressed, cut short or damaged, a member has holes.
    """
    file.seek(begin)
    if file.read(6).startswith(_COMPRESSED):
        raise ValueError('it is compressed, so that nothing in it can be found: gunzip it')
    file.seek(begin)
    cut = tarfile.ReadError('it is cut short, or damaged')
    with tarfile.open(fileobj=file, mode='r:', encoding='utf-8', errors='surrogateescape') as tar:
        for member in tar:
            if member.issparse():
                raise ValueError(f'{member.name!r} is stored without its zeros (tar --sparse)')
            if not begin < member.offset_data <= member.offset_data + member.size <= end:
                raise cut
            if member.isreg():
                yield Member(member.name, member.size, member.offset_data)
        # at a damaged header tarfile stops as at the end, which is a block of zeros
        file.seek(tar.offset)
        if tar.offset + tarfile.BLOCKSIZE > end or any(file.read(tarfile.BLOCKSIZE)):
            raise cut
