"""Stopped after any step and started again, a run has bit for bit the parameters and the metrics of
one that never stopped."""

import json
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tools import fit_tokenizer
from beit_jax.train import evaluation, loop
from beit_jax.train.clock import TIMINGS
from beit_jax.train.processes.distributed import Stop
from beit_jax.weights.checkpoint import load_params
from tests import tiny


def metrics_lines(workdir):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def assert_same_run(workdir, reference):
    assert metrics_lines(workdir) == metrics_lines(reference)
    (params, _), (expected, _) = load_params(str(workdir)), load_params(str(reference))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.parametrize('stops', [(3,), (1, 2, 4)])
def test_resume_is_bitwise(stops, uninterrupted, tokenizer_dir, tmp_path, monkeypatch):
    config = task_config(tiny.settings(tokenizer_dir))
    for step in stops:
        monkeypatch.setattr(Stop, 'asked', lambda self, number, step=step: number == step)
        assert loop.train(config, tmp_path) == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)


def test_lines_after_the_checkpoint_are_dropped(
    uninterrupted, tokenizer_dir, tmp_path, monkeypatch
):
    """A run that dies between two checkpoints has logged steps that the next start computes
    again."""
    config = task_config(tiny.settings(tokenizer_dir))

    def die(self, number):
        if number == 4:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Stop, 'asked', die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path)
    assert metrics_lines(tmp_path)[-1]['step'] == 3
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    monkeypatch.undo()
    assert loop.train(config, tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(
    uninterrupted, tokenizer_dir, tmp_path, monkeypatch, capsys
):
    """The run goes on from the one before, aloud, and ends as if nothing had happened."""
    config = task_config(tiny.settings(tokenizer_dir))
    monkeypatch.setattr(Stop, 'asked', lambda self, number: number == 4)
    assert loop.train(config, tmp_path) == loop.STOPPED
    monkeypatch.undo()
    arrays = max(
        (tmp_path / 'checkpoints' / '4' / 'state').rglob('d/*'),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 4
    arrays.write_bytes(content)
    with pytest.raises(RequestError, match='4 is damaged'):
        evaluation.evaluate(config, tmp_path)
    capsys.readouterr()
    assert loop.train(config, tmp_path) == 0
    assert (
        'WARNING: checkpoint' in (out := capsys.readouterr().out) and 'goes on from step 3' in out
    )
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_of_bad_steps_ends(uninterrupted, tokenizer_dir, tmp_path, monkeypatch, capsys):
    """Loss without a number from step 4 on: skipped, then refused; the parameters stay finite, and
    the batch is on disk."""
    from beit_jax.tasks.pretrain import Pretrain

    whole = Pretrain.loss

    def loss(self, params, batch, keys_B, *, progress, train):
        found, sums = whole(self, params, batch, keys_B, progress=progress, train=train)
        bad = jnp.where(train & (progress * 7 > 2.5), jnp.nan, 0.0)  # step 4 is number 3 from 0
        return found + bad, sums | {'loss': sums['loss'] + bad}

    monkeypatch.setattr(Pretrain, 'loss', loss)
    config = task_config(
        tiny.settings(tokenizer_dir, total_steps=7, max_skipped_steps=3, save_every=3)
    )
    with pytest.raises(
        RequestError,
        match=r'of 3 steps in a row, from step 4 on, were not finite.*skipped_step_4_process_0.npz',
    ):
        loop.train(config, tmp_path)
    assert (
        'warning: loss, gradient or parameters of step 5 are not finite' in capsys.readouterr().out
    )
    rows = metrics_lines(tmp_path)
    assert [row['skipped_steps'] for row in rows if 'loss' in row] == [0, 0, 0, 1, 2, 3]
    assert next(row for row in rows if row['step'] == 4 and 'loss' in row)['loss'] is None
    params, _ = load_params(str(tmp_path))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    batch = np.load(tmp_path / 'skipped_step_4_process_0.npz')
    assert {'image', 'token_image', 'index', 'view'} <= set(batch.files), batch.files
    assert batch['view'].tolist() == list(range(24, 32))  # the fourth batch of 8


def test_finished_run_is_left_alone(uninterrupted, tokenizer_dir):
    before = (uninterrupted / 'metrics.jsonl').read_bytes()
    assert loop.train(task_config(tiny.settings(tokenizer_dir)), uninterrupted) == 0
    assert (uninterrupted / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'optimizer': {'lr': 2e-2}}, r'another config.*optimizer.lr was 0.01, is 0.02'),
        ({'model': {'width': 32}}, r'another config.*model.width'),
        ({'seed': 1}, r'another config.*seed'),
    ],
)
def test_workdir_of_another_config(changed, message, uninterrupted, tokenizer_dir):
    with pytest.raises(RequestError, match=message):
        loop.train(task_config(tiny.settings(tokenizer_dir, **changed)), uninterrupted)


def test_another_tokenizer_is_refused(uninterrupted, tokenizer_dir, tmp_path):
    """The path may change, for a tokenizer may move; what it holds may not."""
    moved = shutil.copytree(tokenizer_dir, tmp_path / 'moved')
    assert loop.train(task_config(tiny.settings(moved)), uninterrupted) == 0
    arrays = safetensors.numpy.load_file(moved / 'tokenizer.safetensors')
    arrays['encoder/input/bias'] = arrays['encoder/input/bias'] + 1
    safetensors.numpy.save_file(arrays, moved / 'tokenizer.safetensors')
    with pytest.raises(RequestError, match=r'on other data \(tokenizer was'):
        loop.train(task_config(tiny.settings(moved)), uninterrupted)


def test_evaluate_alone(uninterrupted, tokenizer_dir, tmp_path, capsys):
    """`--mode=evaluate` gives the figures that training logged last, and writes nothing."""
    config = tiny.settings(tokenizer_dir)
    assert evaluation.evaluate(task_config(config), uninterrupted) == 0
    logged = metrics_lines(uninterrupted)[-1]
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures.pop('eval/images_per_second') > 0
    assert figures == {name: value for name, value in logged.items() if name != 'step'}
    assert (
        evaluation.evaluate(task_config(config | {'init': str(uninterrupted)}), tmp_path / 'new')
        == 0
    )
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    again.pop('eval/images_per_second')
    assert again == figures and not (tmp_path / 'new').exists()
    with pytest.raises(RequestError, match=r'holds no checkpoint .*: give --config.init'):
        evaluation.evaluate(task_config(config), tmp_path / 'new')


def test_init_takes_the_weights_only(uninterrupted, tokenizer_dir, tmp_path):
    config = task_config(
        tiny.settings(
            tokenizer_dir,
            total_steps=2,
            init=str(uninterrupted),
            optimizer={'lr': 1e-12, 'final_lr': 0.0},
        )
    )
    assert loop.train(config, tmp_path) == 0
    params, description = load_params(str(tmp_path))
    expected, _ = load_params(str(uninterrupted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)
    assert description['config']['init'] == str(uninterrupted)
    other = task_config(tiny.settings(tokenizer_dir, init=str(uninterrupted), model={'hidden': 40}))
    with pytest.raises(RequestError, match=r'another model.*mlp/fc1'):
        loop.train(other, tmp_path / 'other')


def test_another_vocabulary_than_the_head(uninterrupted, tmp_path):
    """Said in words, before the shapes of arrays are."""
    arguments = [
        '--kind=random_projection',
        '--vocabulary=23',
        '--patch_size=4',
        '--image_size=20',
        f'--output={tmp_path / "other"}',
    ]
    fit_tokenizer.run(fit_tokenizer._arguments().parse_args(arguments))
    with pytest.raises(
        RequestError, match=r'the head of .* predicts 17 tokens, the tokenizer of this run has 23'
    ):
        loop.train(
            task_config(tiny.settings(tmp_path / 'other', init=str(uninterrupted))),
            tmp_path / 'run',
        )
    with pytest.raises(RequestError, match=r'on other data \(tokenizer was'):
        loop.train(task_config(tiny.settings(tmp_path / 'other')), uninterrupted)


@pytest.mark.slow  # test_faults.py does it at random moments
def test_sigterm_of_a_real_process(tokenizer_dir, tmp_path):
    """SIGTERM while training: the step is finished and saved, status 75, and the next start ends as
    if nothing had been."""
    changed = {'total_steps': 80, 'log_every': 1, 'evaluate_every': 0, 'save_every': 1000}
    process = tiny.start(tiny.arguments(tmp_path / 'a', tokenizer_dir, **changed))
    log, deadline = tmp_path / 'a' / 'metrics.jsonl', time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert 'goes on from there' in out and 'Traceback' not in err
    again = tiny.run(tiny.arguments(tmp_path / 'a', tokenizer_dir, **changed))
    assert again.returncode == 0, again.stderr
    assert tiny.run(tiny.arguments(tmp_path / 'b', tokenizer_dir, **changed)).returncode == 0
    assert_same_run(tmp_path / 'a', tmp_path / 'b')
