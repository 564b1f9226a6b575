"""Which of a folder's files are of which split, by their names."""

from collections.abc import Callable, Iterable
import hashlib
import json
import re
import typing

from beit_jax.errors import RequestError, check

# what the names of files call a split
_WORDS = {'train': ('train', 'training'), 'validation': ('val', 'valid', 'validation')}
_WORDS |= {'test': ('test', 'testing')}
PARTS = {word for synonyms in _WORDS.values() for word in synonyms}  # no names of classes


def of_split(names: Iterable[str], split: str, where: str) -> list[str]:
    """Those of the files whose names have a word for `split`; all where no name has such a word.

    Raises:
      RequestError: there is none; `where` is what the message begins with.
    """
    words = {name: set(re.split(r'[^a-z]+', name.lower())) for name in names}
    kinds = {
        kind: [name for name in words if words[name] & set(synonyms)]
        for kind, synonyms in _WORDS.items()
    }
    wanted = next((kind for kind, synonyms in _WORDS.items() if split in synonyms), split)
    found = kinds.get(wanted, []) if any(kinds.values()) else list(words)
    there = ', '.join(kind for kind, files in kinds.items() if files)
    check(bool(found), f'{where} has no file of the split {split!r}: it has {there or "none"}.')
    return found


def digest(*columns: Iterable) -> str:
    """sha256 of a table: the fingerprint of files by their names, sizes, ..."""
    rows = ['\t'.join(map(str, row)) + '\n' for row in zip(*columns)]
    return hashlib.sha256(''.join(rows).encode()).hexdigest()


def facts_of(text: bytes, take: Callable[[typing.Any], typing.Any], where: str):
    """What `take` finds in the JSON that describes a data set.

    Raises:
      RequestError: it does not; `where` is what the message begins with.
    """
    try:
        return take(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f'{where} is damaged ({type(error).__name__}): download it again.'
        ) from error
