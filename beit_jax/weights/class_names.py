"""Whether two lists name the same classes in the same order."""

from collections.abc import Sequence
import functools
import importlib.resources
import unicodedata


def first_difference(named: Sequence[str], classes: Sequence[str]) -> int | None:
    """The first class that the two lists do not have in common; None where all are the same.

    Names are compared as people see them: accents may be letters of their own, as in names of files
    of macOS. A noun of WordNet by number (n01440764, as ImageNet's folders are named) is the class
    whose first name it has (`tench, Tinca tinca`), as far as those of ImageNet-1k.
    """
    for number, (one, other) in enumerate(zip(named, classes)):
        if not _same(one, other):
            return number
    return None if len(named) == len(classes) else min(len(named), len(classes))


def _same(one: str, other: str) -> bool:
    one, other = composed(one), composed(other)
    nouns = _imagenet_nouns()
    return one == other or _first(other) == nouns.get(one) or _first(one) == nouns.get(other)


def composed(name: str) -> str:
    """A name with each accent in its letter (NFC)."""
    return unicodedata.normalize('NFC', name)


def _first(name: str) -> str:
    return name.partition(',')[0].strip().lower()


@functools.cache
def _imagenet_nouns() -> dict[str, str]:
    """WordNet's number -> first name, of the classes of ImageNet-1k."""
    table = importlib.resources.files(__package__) / 'imagenet_1k.txt'
    lines = table.read_text(encoding='utf-8').splitlines()
    rows = (line.split(' ', 1) for line in lines if not line.startswith('#'))
    return {number: name.lower() for number, name in rows}
