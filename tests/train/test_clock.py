"""What a run tells of its time, beside times that are made up, and of its arithmetic, beside what
is counted by hand."""

import concurrent.futures
import json
import time
import types

import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import clock as clocks
from beit_jax.train import loop
from beit_jax.train.batches import Batches
from beit_jax.train.clock import TIMINGS, Clock, duration, time_in_steps
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir.launches import launches
from tests import tiny


def ready(value):
    future = concurrent.futures.Future()
    future.set_result(value)
    return future


@pytest.fixture
def moment(monkeypatch):
    """The seconds that both clocks of the host show."""
    now = types.SimpleNamespace(seconds=100.0)
    fake = types.SimpleNamespace(time=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr(clocks, 'time', fake)
    return now


def made_up_run(tmp_path, devices, cached_from=1e9):
    return types.SimpleNamespace(
        workdir=tmp_path,
        config=types.SimpleNamespace(batch_size=6, total_steps=40),
        mesh=types.SimpleNamespace(
            size=devices,
            devices=types.SimpleNamespace(flat=[types.SimpleNamespace(device_kind='TPU v4')]),
        ),
        batches=types.SimpleNamespace(cached_from=cached_from),
    )


def test_laps(tmp_path, moment):
    """Twelve steps of two seconds, of which three wait; tokens come from the cache after step 13;
    then an evaluation of 40 seconds, and four steps."""
    path = tmp_path / 'launches.jsonl'
    path.write_text('{"time": 40.0, "step": 0}\n{"time": 99.0, "step": 7}\n{"time": 1')
    rows = [{'step': 3, 'step_seconds': 4.0}, {'step': 3, 'eval/loss': 1.0}]
    clock = Clock(made_up_run(tmp_path, 3, 13), 7, (300e12, 60e12), rows)
    moment.seconds = 105
    clock.fetched(101, concurrent.futures.Future())  # the device is busy: no wait
    clock.fetched(101, ready(103.5))
    clock.fetched(103.5, ready(90))
    moment.seconds = 124
    figures, left = clock.lap(19)
    per_device = (12 * 300 + 6 * 60) / 24 / 3
    assert figures == {
        'step_seconds': 2,
        'images_per_second': 3,
        'images_per_second_per_device': 1,
        'tflops_per_second_per_device': pytest.approx(per_device, rel=1e-5),
        'utilisation': pytest.approx(per_device / 275.25, rel=1e-4),
        'input_wait': 3 / 24,
        # three steps of four seconds, then 16 of two, counted from the launch before this one
        'goodput': pytest.approx((12 + 32) / 84, rel=1e-5),
    }
    assert set(figures) == set(TIMINGS) and left == '42 s left'
    moment.seconds = 164
    clock.restart(19)
    moment.seconds = 172
    figures, left = clock.lap(23)
    assert (figures['step_seconds'], figures['input_wait']) == (2, 0)
    assert figures['goodput'] == pytest.approx((44 + 8) / 132, rel=1e-5)
    # the evaluation is in what is left: 72 seconds since it began, 40 of them steps
    assert left == '1 min left'


def test_time_in_steps():
    """Of lines that a run of before left, without times, and of what came later."""
    rows = [{'step': 2, 'loss': 1.0}, {'step': 4, 'step_seconds': 0.5}, {'step': 9}]
    assert time_in_steps([*rows, {'step': 14, 'step_seconds': 2.0}], 0) == (2 + 20, 14)
    assert time_in_steps(rows, 4) == (0, 4)


@pytest.mark.parametrize(
    ('seconds', 'said'),
    [
        (0.4, '0 s'),
        (59.4, '59 s'),
        (59.6, '1 min'),
        (3569, '59 min'),
        (3571, '1 h 00 min'),
        (48 * 3600 - 31, '47 h 59 min'),
        (4.2 * 86400, '4.2 days'),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


@pytest.mark.usefixtures('one_device')
def test_a_run(tokenizer_dir, tmp_path, monkeypatch, capsys):
    """Every training line has the times; FLOPs as they are counted by hand, with the tokenizer as
    long as it computes tokens; goodput across a stop; pictures that are slow are seen to be."""
    monkeypatch.setattr(clocks, 'peak_flops', lambda device: 1e12)
    changed = {'evaluate_every': 0, 'save_every': 5, 'tokenizer': {'cache_views': 1}}
    settings = tiny.settings(tokenizer_dir, total_steps=7, **changed)
    config = task_config(settings)
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 2)
    assert loop.train(config, tmp_path) == loop.STOPPED
    monkeypatch.setattr(Stop, 'asked', lambda self, step: False)
    read = Batches.train

    def slow(self, *arguments):
        for batch in read(self, *arguments):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Batches, 'train', slow)
    assert loop.train(config, tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    rows = [row for row in lines if 'loss' in row]
    assert [row['step'] for row in rows] == list(range(1, 8))
    assert not [row for row in rows if not row.keys() >= set(TIMINGS)]
    of_step, of_preparation = by_hand(batch=8)
    cached_from = 5  # 37 examples in batches of 8
    for row in rows:
        flops = of_step + of_preparation * (row['step'] <= cached_from)
        told = row['tflops_per_second_per_device'] * 1e12 * row['step_seconds']
        assert told == pytest.approx(flops, rel=0.005), row
        assert row['utilisation'] == pytest.approx(row['tflops_per_second_per_device'], rel=1e-4)
    assert 0 < max(row['input_wait'] for row in rows[3:]) <= 1
    first, second = launches(tmp_path)
    assert (first['step'], second['step']) == (0, 2) and first['versions']['jax']
    in_steps, _ = time_in_steps(rows, 0)
    assert 0 < rows[-1]['goodput'] < in_steps / (second['time'] - first['time'])
    assert 's left' in capsys.readouterr().out


def by_hand(batch: int) -> tuple[int, int]:
    """Floating-point operations of a step of `tiny.settings`, and of its tokenizer: two for each
    weight that a token, a patch or a pixel meets, and for each pair of tokens; the backward pass
    twice as many as the forward pass."""
    patches, width, hidden, predicted, vocabulary = 25, 16, 24, 11, 17
    tokens = patches + 1
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    forward = patches * (4 * 4 * 3) * width + 2 * block + predicted * width * vocabulary
    return 3 * 2 * batch * forward, 2 * batch * dvae()


def dvae() -> int:
    """Multiplications of the encoder of `tokenizer_dir`: groups of one block at 10 x 10 pixels of
    width 8, then 5 x 5 of 16; a block has three convolutions 3 x 3 and one 1 x 1 over a quarter of
    its width, and a shortcut where it widens."""
    narrow = 100 * (9 * (8 * 2 + 2 * 2 + 2 * 2) + 2 * 8)
    wide = 25 * (9 * (8 * 4 + 4 * 4 + 4 * 4) + 4 * 16 + 8 * 16)
    return 100 * 7 * 7 * 3 * 8 + narrow + wide + 25 * 16 * 17
