"""Arrays that grow on disk, against numpy.savez."""

import numpy as np
import pytest

from beit_jax.inference.rows import Rows
from beit_jax.whole_files import whole_file


def test_as_savez(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        'cls': random.random((7, 3, 5), np.float32).swapaxes(1, 2),  # not contiguous
        'tokens': random.integers(0, 9, (7, 11)).astype(np.int32),
        'labels': np.arange(7, dtype=np.int32),
    }
    names = np.array(['a', 'bcd'])
    (tmp_path / 'ours.npz').write_bytes(b'of before')
    with whole_file(tmp_path / 'ours.npz') as path:
        rows = Rows(path.parent)
        for start, end in ((0, 4), (4, 7)):
            rows.add({name: array[start:end] for name, array in arrays.items()})
        rows.write(path, paths=names)
    np.savez(tmp_path / 'theirs.npz', paths=names, **arrays)
    ours, theirs = np.load(tmp_path / 'ours.npz'), np.load(tmp_path / 'theirs.npz')
    assert ours.files == theirs.files
    for name in ours.files:
        np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['ours.npz', 'theirs.npz']


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / 'o.npz').write_bytes(b'of before')
    with pytest.raises(OSError), whole_file(tmp_path / 'o.npz') as path:
        Rows(path.parent).add({'x': np.zeros((2, 3))})
        raise OSError
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b'of before']
