"""File systems that are not local, 'gs://bucket/folder', through fsspec."""

from collections.abc import Iterator
import contextlib
import errno

from beit_jax.errors import RequestError


def is_remote(path: str) -> bool:
    return '://' in path


@contextlib.contextmanager
def file_system(path: str) -> Iterator[tuple]:
    """(the fsspec file system of a path, its name of it); what it raises in the block is an
    OSError.

    Raises:
      RequestError: there is none, or its package is not installed.
    """
    import fsspec  # here, for local paths do without it

    try:
        # listings would hold all names, and those that another host has changed
        system, own_path = fsspec.core.url_to_fs(path, use_listings_cache=False)
    except ImportError as error:
        package = getattr(error.__cause__ or error, 'name', None) or 'its package'
        raise RequestError(
            f'{path!r} cannot be opened: pip install {package} ({error}).'
        ) from error
    except ValueError as error:
        raise RequestError(
            f'{path!r} cannot be opened: {error}. It takes local paths, gs://, s3:// and what else '
            'fsspec knows.'
        ) from error
    try:
        yield system, own_path
    except OSError:
        raise
    except Exception as error:  # each store has errors of its own
        # whatever it is, it is not a damaged file: those have no errno
        raise OSError(errno.EPROTO, ' '.join(str(error).split()), path) from error
