"""Records of TFRecord files that TensorFlow wrote: where each is, and that its bytes are whole."""

from pathlib import Path

import fsspec
import pytest

from beit_jax.data.stores import shards

tf = pytest.importorskip('tensorflow')


def test_each_byte_of_a_record_is_verified(tmp_path):
    path, records = str(tmp_path / 'x'), [b'first' * 7, b'second', b'']
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    data = Path(path).read_bytes()
    source = shards.TFRecords([path], [len(data)], [3], '', {'path': 'x'})
    assert [source.read(i) for i in range(3)] == records
    begin = len(data) - 22 - 16
    for place in range(begin, begin + 22):  # the second record's frame
        flipped = bytes([data[place] ^ 1 << place % 8])
        Path(path).write_bytes(data[:place] + flipped + data[place + 1 :])
        many = source.read_many(0, 3)
        assert [many[0], many[2]] == [records[0], records[2]]
        with pytest.raises(OSError, match=r'x:1 is damaged: its checksum'):
            source.read(1)
        assert isinstance(many[1], OSError)
    Path(path).write_bytes(data[:-1])
    assert isinstance(source.read_many(0, 3)[2], OSError)


def test_headers_wherever_a_block_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, '_BLOCK', 67)
    records = [b'x' * (i % 31) for i in range(211)]
    with tf.io.TFRecordWriter(str(tmp_path / 'x')) as writer:
        for record in records:
            writer.write(record)
    path, data = f'memory://{tmp_path.name}/x', (tmp_path / 'x').read_bytes()
    fsspec.filesystem('memory').pipe_file(path, data)
    source = shards.TFRecords([path], [len(data)], [211], '', {'path': 'x'})
    assert source.read_many(0, 211) == records
