"""Small files that someone damaged or made up."""

import errno
import json
import os
from pathlib import Path
import random

import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.whole_files import read_json

GOOD = {'a': [1, 2.5, None, True, {'ü': 'x\n'}], 'b': {'c': -(2**63)}}


def nested(levels: int) -> str:
    return '{"a":' * levels + '1' + '}' * levels


def test_read_json(tmp_path):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(GOOD))
    assert read_json(path, 'remove it') == GOOD
    path.write_text(nested(64))
    assert read_json(path, 'remove it')


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'Expecting value'),
        (b'{"a": "\xff"}', 'codec'),
        (b'\x00\xff\xfe\x80' * 5, 'Expecting value'),
        (b'{"a": 1', 'delimiter'),
        (b'[1]', 'not a JSON object'),
        (b'7', 'not a JSON object'),
        (b'{"a": NaN}', 'Out of range'),
        (b'{"a": [-Infinity]}', 'Out of range'),
        (b'{"a": 1e999}', 'Out of range'),
        (b'{"a": 18446744073709551616}', '20 digits'),
        (b'{"a": %s}' % (b'9' * 5000), '5000 digits'),
        (b'{"a": "\\ud800"}', 'surrogates'),
        (nested(65).encode(), '64 levels'),
        (nested(100_000).encode(), 'recursion'),
        (b'{"a": "%s"}' % (b'x' * (8 << 20)), 'larger than 8388608'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_not_an_object_is_named_with_the_remedy(content, reason, tmp_path):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(RequestError, match=reason) as error:
        read_json(path, 'remove it')
    assert str(path) in str(error.value) and str(error.value).endswith('remove it.')
    assert len(str(error.value).splitlines()) == 1


def test_what_is_not_a_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'fifo')  # nobody writes into it: reading it would never end
    for name in ('missing', '.', 'fifo'):
        with pytest.raises(RequestError, match='not a file that is there: remove it'):
            read_json(tmp_path / name, 'remove it')

    def fail(*_):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(Path, 'is_file', fail)
    with pytest.raises(StorageError, match='missing cannot be read: Input/output error'):
        read_json(tmp_path / 'missing', 'remove it')


def test_any_bytes(tmp_path):
    """5,000 mutations: an object, or the error that a user reads."""
    rng, path, read = random.Random(0), tmp_path / 'x.json', 0
    whole = json.dumps(GOOD).encode()
    for _ in range(5000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(content))
            piece = rng.randbytes(1) if rng.random() < 0.5 else rng.choice((b'"', b'[', b'}', b''))
            content[start : start + rng.randint(0, 2)] = piece
        path.write_bytes(content)
        try:
            assert isinstance(read_json(path, 'remove it'), dict)
            read += 1
        except RequestError as error:
            assert 'remove it' in str(error)
    assert 0 < read < 5000
