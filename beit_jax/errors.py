"""The two exceptions that a user is meant to see, and checks that raise them."""

from collections.abc import Iterable
import difflib
import errno

# What storage answers that is full, read-only, failing or away: it may be otherwise later.
PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
    }
)


class RequestError(Exception):
    """A request that cannot be carried out: says what is wrong, where, and what to change, in one
    or two lines.

    `main.py` and the tools print it on stderr without a traceback and exit with status 2.
    """


class StorageError(Exception):
    """A right request whose files cannot be read or written now: a full disk, data that were
    unmounted, a file without permission. Says what, where, and what to do, in one or two lines.

    `main.py` and the tools print it on stderr without a traceback and exit with status 74: the same
    command may go on later, so what starts runs again should.
    """


def of_storage(error: Exception, message: str) -> RequestError | StorageError:
    """What to raise where a file that a request names could not be read or written: a StorageError
    where that may pass (`PASSING`)."""
    passing = isinstance(error, OSError) and error.errno in PASSING
    return (StorageError if passing else RequestError)(message)


def check(condition: bool, message: str) -> None:
    """Raises `RequestError(message)` unless `condition`."""
    if not condition:
        raise RequestError(message)


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises `RequestError` unless `value` is in `allowed`; names the nearest."""
    allowed = tuple(allowed)
    check(
        value in allowed,
        f'{name}={value!r} is unknown.{nearest(value, allowed)} Allowed: {", ".join(allowed)}.',
    )


def shown(name: str) -> str:
    """A name of a file as it can be printed and written: bytes that are not UTF-8 as \\xNN."""
    return name.encode(errors='surrogateescape').decode(errors='backslashreplace')


def nearest(word: str, words: Iterable[str]) -> str:
    """' Did you mean X?' for the word of `words` that is most like `word`, or ''."""
    found = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f' Did you mean {found[0]}?' if found else ''
