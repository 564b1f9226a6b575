"""Some of the examples of another source; the share that is held out."""

import numpy as np
import pytest

from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.subset import Subset, holdout
from tests.data.files import write


def test_subset(tmp_path):
    subset = Subset(FolderSource(write(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')), [2, 0])
    assert len(subset) == 2 and subset.name(0).endswith('c.jpg') and subset.read(1) == (b'\0', 0)


def test_read_many_asks_for_runs_of_neighbours(tmp_path):
    source = FolderSource(write(tmp_path, *(f'{i:02}.jpg' for i in range(13))))
    asked, read_many = [], source.read_many
    source.read_many = lambda *span: asked.append(span) or read_many(*span)
    subset = Subset(source, [0, 2, 3, 5, 6, 7, 12, 11])
    assert subset.read_many(1, 8) == [source.read(i) for i in (2, 3, 5, 6, 7, 12, 11)]
    assert subset.read_many(3, 3) == []
    assert asked == [(2, 4), (5, 8), (12, 13), (11, 12)]


@pytest.mark.parametrize(
    'num_examples, share, expected',
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.9, 1), (101, 0.1, 10), (101, 0.0, 0)],
)
def test_holdout(num_examples, share, expected):
    kept, held_out = holdout(num_examples, share)
    assert len(held_out) == expected
    both = np.sort(np.concatenate([kept, held_out]))
    np.testing.assert_array_equal(both, np.arange(num_examples))
    if share == 0.1:
        # a resumed run must not train on what it held out
        assert held_out.tolist() == [15, 17, 32, 51, 57, 67, 70, 74, 76, 91]
