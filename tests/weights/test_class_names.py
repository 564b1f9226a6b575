"""Names of classes: ImageNet's folders against the names that models have, accents, order."""

import importlib.util
from pathlib import Path
import unicodedata

import pytest

from beit_jax.weights.class_names import _imagenet_nouns, first_difference


def test_imagenet():
    """Against timm's lists of the numbers and of all their names."""
    found = importlib.util.find_spec('timm')
    if found is None:
        pytest.skip('timm is not installed')
    folder = Path(found.submodule_search_locations[0], 'data', '_info')
    numbers = (folder / 'imagenet_synsets.txt').read_text().split()
    lines = (folder / 'imagenet_synset_to_lemma.txt').read_text().splitlines()
    names = dict(line.split('\t') for line in lines if line)
    assert list(_imagenet_nouns()) == sorted(numbers)
    readable = [names[number] for number in numbers]
    assert first_difference(readable, numbers) is first_difference(numbers, readable) is None
    swapped = [*numbers[:500], numbers[501], numbers[500], *numbers[502:]]
    assert first_difference(readable, swapped) == 500


@pytest.mark.parametrize(
    ('named', 'classes', 'first'),
    [
        (['tench, Tinca tinca', 'x'], ['n01440764', 'x'], None),
        (['Tench', 'x'], ['n01440764', 'y'], 1),
        (['tenches'], ['n01440764'], 0),
        (['tench'], ['Tench'], 0),  # of one data set, names that differ
        (['n00000001'], ['n00000002'], 0),
        ([unicodedata.normalize('NFD', 'Bär')], [unicodedata.normalize('NFC', 'Bär')], None),
        (['a', 'b'], ['a'], 1),
        ([], ['a'], 0),
    ],
)
def test_first_difference(named, classes, first):
    assert first_difference(named, classes) == first
