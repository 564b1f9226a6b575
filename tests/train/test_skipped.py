"""A step of which the update, and not yet the loss, is not finite: its parameters are not saved,
the checkpoint before it stays, and the advice that is given helps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks.pretrain import Pretrain
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.weights.checkpoint import load_params
from tests import tiny
from tests.train.test_resume import metrics_lines


def diverging(settings):
    """A rate above what a recipe may ask for; of the first step it is 0."""
    config = task_config(settings | {'optimizer': {'lr': 1.0, 'warmup_steps': 1}})
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e30))


def assert_finite(workdir):
    params, _ = load_params(str(workdir))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    ('save_every', 'message', 'saved'),
    [
        (1, r'the parameters after step 2 are not finite, and are not saved', [1]),
        (9, r'of 3 steps in a row, from step 3 on, were not finite', []),
    ],
)
def test_an_update_that_is_not_finite(save_every, message, saved, tokenizer_dir, tmp_path):
    """Whether it is about to be saved, or found by the steps after it; `log_every` is no matter."""
    settings = tiny.settings(
        tokenizer_dir,
        total_steps=7,
        save_every=save_every,
        evaluate_every=0,
        keep_checkpoints=1,
        max_skipped_steps=3,
        log_every=2,
    )
    with pytest.raises(RequestError, match=message):
        loop.train(diverging(settings), tmp_path)
    (two,) = [row for row in metrics_lines(tmp_path) if row['step'] == 2]
    assert two['loss'] is not None and two['grad_norm'] is not None
    assert Checkpoints(tmp_path).steps == saved
    advised = settings | {'optimizer': {'lr': 1e-2, 'warmup_steps': 1}, 'accept_changes': True}
    assert loop.train(task_config(advised), tmp_path) == 0
    rows = metrics_lines(tmp_path)
    assert rows[-1]['step'] == 7 and all(row.get('skipped_steps', 0) == 0 for row in rows)
    assert_finite(tmp_path)


@pytest.mark.usefixtures('one_device')
def test_stopped_while_steps_are_skipped(tokenizer_dir, tmp_path, monkeypatch, capsys):
    """Nothing is saved then; the next start repeats them. The last step is saved in any case."""
    whole = Pretrain.loss

    def loss(self, params, batch, keys_B, *, progress, train):
        found, sums = whole(self, params, batch, keys_B, progress=progress, train=train)
        bad = jnp.where(train & (progress > 0.2), jnp.nan, 0.0)  # from step 2 on
        return found + bad, sums | {'loss': sums['loss'] + bad}

    monkeypatch.setattr(Pretrain, 'loss', loss)
    settings = tiny.settings(tokenizer_dir, total_steps=4, save_every=1, evaluate_every=0)
    config = task_config(settings)
    asked = Stop.asked
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 3)
    assert loop.train(config, tmp_path) == loop.STOPPED
    assert 'signal after step 3: step 1 is saved. The same command' in capsys.readouterr().out
    assert Checkpoints(tmp_path).steps == [1]
    monkeypatch.setattr(Stop, 'asked', asked)
    assert loop.train(config, tmp_path) == 0
    assert Checkpoints(tmp_path).steps == [4, 1]
    assert_finite(tmp_path)
    assert [row['skipped_steps'] for row in metrics_lines(tmp_path) if 'loss' in row] == [
        0,
        1,
        2,
        3,
    ]
