"""Steps of which the update, and not yet the loss, is not finite: the parameters stay, so does the
checkpoint before them, and the advice that is given helps."""

import dataclasses

import jax
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.weights.checkpoint import load_params
from tests import tiny
from tests.train.test_resume import metrics_lines


def diverging(tokenizer_dir, **changed):
    """A rate above what a recipe may ask for; of the first step it is 0."""
    optimizer = {'lr': 1.0, 'warmup_steps': 1}
    config = task_config(tiny.settings(tokenizer_dir, **changed, optimizer=optimizer))
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e30))


def assert_finite(workdir):
    params, _ = load_params(str(workdir))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.usefixtures('one_device')
def test_an_update_that_is_not_finite(tokenizer_dir, tmp_path):
    changed = {'total_steps': 7, 'save_every': 1, 'evaluate_every': 0, 'keep_checkpoints': 1}
    changed |= {'max_skipped_steps': 3, 'log_every': 2}
    with pytest.raises(RequestError, match=r'of 3 steps in a row, from step 2 on, were not finite'):
        loop.train(diverging(tokenizer_dir, **changed), tmp_path)
    (two,) = [row for row in metrics_lines(tmp_path) if row['step'] == 2]
    assert two['loss'] is not None and two['grad_norm'] is not None and two['skipped_steps'] == 1
    assert Checkpoints(tmp_path).steps == [1]
    assert_finite(tmp_path)
    changed |= {'optimizer': {'lr': 1e-2, 'warmup_steps': 1}, 'accept_changes': True}
    assert loop.train(task_config(tiny.settings(tokenizer_dir, **changed)), tmp_path) == 0
    rows = metrics_lines(tmp_path)
    assert rows[-1]['step'] == 7 and all(row.get('skipped_steps', 0) == 0 for row in rows)


@pytest.mark.usefixtures('one_device')
def test_stopped_while_steps_are_skipped(tokenizer_dir, tmp_path, monkeypatch, capsys):
    """Nothing is saved then; the next start repeats them. The last step is saved in any case."""
    config = diverging(tokenizer_dir, total_steps=4, save_every=1, evaluate_every=0)
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 3)
    assert loop.train(config, tmp_path) == loop.STOPPED
    assert 'signal after step 3: step 1 is saved. The same command' in capsys.readouterr().out
    assert Checkpoints(tmp_path).steps == [1]
    monkeypatch.undo()
    assert loop.train(config, tmp_path) == 0
    assert Checkpoints(tmp_path).steps == [4, 1]
    assert_finite(tmp_path)
    assert [row['skipped_steps'] for row in metrics_lines(tmp_path) if 'loss' in row] == [
        0,
        1,
        2,
        3,
    ]
