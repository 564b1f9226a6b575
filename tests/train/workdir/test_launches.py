"""The starts of a run, of which one was torn and others were made up."""

import json
import time
import types

import numpy as np
import pytest

from beit_jax.train.workdir.launches import launches, record

MESH = types.SimpleNamespace(
    devices=np.array([types.SimpleNamespace(device_kind='TPU v4')] * 3, object)
)


def test_starts(tmp_path, monkeypatch):
    """Each has its line, also behind one that was torn; what a command line has that is no UTF-8 is
    shown."""
    monkeypatch.setattr('sys.argv', ['main.py', '--workdir=\udcff'])
    assert launches(tmp_path / 'new') == []
    record(tmp_path / 'new', 0, MESH)
    path = tmp_path / 'new' / 'launches.jsonl'
    path.write_bytes(path.read_bytes() + b'{"time": 1.5, "st')
    record(tmp_path / 'new', 7, MESH)
    first, second = launches(tmp_path / 'new')
    assert (first['step'], second['step']) == (0, 7) and 0 <= time.time() - first['time'] < 600
    assert second['command'] == ['main.py', '--workdir=\\xff']
    assert (second['devices'], second['device']) == (3, 'TPU v4')
    assert second['versions']['numpy'] == np.__version__


@pytest.mark.parametrize(
    'wrong',
    [
        {'time': 'x'},
        {'time': 1e300},
        {'time': -1},
        {'step': 1.5},
        {'command': 'x'},
        {'versions': 7},
    ],
)
def test_what_is_made_up(wrong, tmp_path):
    good = {'time': 1.5, 'step': 3}
    lines = [good | wrong, good]
    (tmp_path / 'launches.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert launches(tmp_path) == [good]
