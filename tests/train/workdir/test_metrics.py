"""Lines of metrics that a disk, an editor or a killed run has spoiled: what is whole stays, the
rest is set aside aloud."""

import json

import pytest

from beit_jax.train.workdir.metrics import MetricsWriter

WHOLE = [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': None}, {'step': 2, 'eval/loss': 1e-7}]
DAMAGED = [
    b'',
    b'{"step": 1, "lo',
    b'\x00\xff\r\x80',
    b'[1]',
    b'7',
    b'{"loss": 1}',
    b'{"step": "1"}',
    b'{"step": true}',
    b'{"step": 1, "loss": {"a": 1}}',
    b'{"step": 1, "loss": NaN}',
    b'{"step": 1, "loss": 1e999}',
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize('damaged', [*([line] for line in DAMAGED), DAMAGED])
def test_what_is_whole_stays(damaged, tmp_path, capsys):
    path, aside = tmp_path / 'metrics.jsonl', tmp_path / 'metrics.jsonl.damaged'
    whole = [json.dumps(row).encode() for row in WHOLE]
    later = b'{"step": 3, "loss": 1.0}'  # of a run that died after its newest checkpoint
    path.write_bytes(b'\n'.join([*whole[:1], *damaged, *whole[1:], later, b'{"step": 4']))
    log = MetricsWriter(tmp_path, 2, 5, active=True)
    assert log.evaluated
    log.write(3, {'loss': 0.5})
    log.close()
    assert path.read_bytes() == b'\n'.join([*whole, b'{"step": 3, "loss": 0.5}', b''])
    assert aside.read_bytes() == b'\n'.join([*damaged, b''])
    out = capsys.readouterr().out
    assert f'WARNING: {len(damaged)} lines of {path} are damaged: they are set aside' in out
    MetricsWriter(tmp_path, 3, 5, active=True).close()
    assert not capsys.readouterr().out and aside.read_bytes() == b'\n'.join([*damaged, b''])


def test_a_file_that_is_whole_is_left_alone(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    content = ''.join(json.dumps(row) + '\n' for row in WHOLE)
    path.write_text(content + '{"step": 3, "lo')
    MetricsWriter(tmp_path, 2, 5, active=True).close()
    assert path.read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ['metrics.jsonl']
