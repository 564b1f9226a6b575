"""What a run says and refuses when it is opened."""

import dataclasses

import pytest

from beit_jax.errors import RequestError
from beit_jax.models.architecture import encoder_config
from beit_jax.settings.mapping import task_config
from beit_jax.train import run as runs
from beit_jax.train.run import Run
from beit_jax.train.workdir.changes import config_changes, write_config
from tests import tiny


def opened(tokenizer_dir, workdir, **changed) -> Run:
    return Run(task_config(tiny.settings(tokenizer_dir, **changed)), workdir)


def test_how_it_computes_is_said_and_kept(tokenizer_dir, tmp_path):
    run = opened(tokenizer_dir, tmp_path, deterministic=True)
    assert run.summary().endswith(' of cpu; attention plain')
    assert run.notes == ['config.deterministic changes nothing on a cpu']
    computed = {'device': 'cpu', 'attention': 'plain', 'deterministic': False}
    assert run.description()['computed'] == computed


def test_deterministic_that_came_too_late(monkeypatch, tokenizer_dir):
    config = task_config(tiny.settings(tokenizer_dir, deterministic=True))
    with pytest.raises(RequestError, match='set XLA_FLAGS=--xla_gpu_deterministic_ops=true'):
        runs._determinism(config, 'gpu')
    monkeypatch.setattr(runs, 'is_deterministic', lambda: True)
    assert runs._determinism(config, 'gpu') == [
        'deterministic: XLA_FLAGS has --xla_gpu_deterministic_ops=true'
    ]
    assert runs._determinism(dataclasses.replace(config, deterministic=False), 'gpu') == []


@pytest.mark.parametrize('way', ['cudnn', 'pallas'])
def test_attention_that_is_not_there(way, tokenizer_dir, tmp_path):
    with pytest.raises(RequestError, match=f'config.model.attention={way}: .* this is a cpu'):
        opened(tokenizer_dir, tmp_path, model={'attention': way})


def test_a_run_goes_on_with_another_attention(tokenizer_dir, tmp_path):
    config = task_config(tiny.settings(tokenizer_dir))
    write_config(config, tmp_path)
    other = dataclasses.replace(config.model, attention='plain')
    assert (
        config_changes(dataclasses.replace(config, model=other, deterministic=True), tmp_path) == []
    )


def test_a_model_is_opened_on_another_machine(tokenizer_dir, tmp_path):
    """What was trained by cuDNN runs where there is none."""
    architecture = opened(tokenizer_dir, tmp_path).task.describe()
    assert encoder_config(architecture | {'attention': 'cudnn'}).attention == 'auto'
    architecture.pop('attention')
    assert encoder_config(architecture).attention == 'auto'
