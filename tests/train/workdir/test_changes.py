"""A start that is refused leaves a work directory as it was, so that the mended command works."""

import json

import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tools import curves
from beit_jax.train import loop
from beit_jax.train.workdir.changes import FILE, config_changes, write_config
from tests import tiny


def test_a_refused_start_leaves_no_trace(tokenizer_dir, tmp_path):
    for refused, message in (
        ({'optimizer': {'warmup_steps': 9}}, 'the warm-up takes 9 of 5 steps'),
        ({'init': str(tmp_path / 'no')}, 'no'),
    ):
        with pytest.raises(RequestError, match=message):
            loop.train(task_config(tiny.settings(tokenizer_dir, **refused)), tmp_path / 'run')
        assert not (tmp_path / 'run' / FILE).exists()


def test_what_differs_from_the_run_of_a_work_directory(tokenizer_dir, tmp_path):
    config = lambda **changed: task_config(tiny.settings(tokenizer_dir, **changed))
    assert config_changes(config(), tmp_path) == []
    write_config(config(), tmp_path)
    assert (
        config_changes(config(data={'max_bad_share': 0.5, 'workers': 3}, save_every=2), tmp_path)
        == []
    )
    with pytest.raises(
        RequestError, match=r'holds a run of another config \(config.seed was 0, is 1\)'
    ):
        config_changes(config(seed=1), tmp_path)
    assert len(config_changes(config(seed=1, accept_changes=True), tmp_path)) == 1
    for damaged in ('x', '[1]'):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(RequestError, match=r'config.json is damaged .*: remove it'):
            config_changes(config(), tmp_path)


def test_a_setting_that_came_later(tokenizer_dir, tmp_path):
    """A run that began before there was a choice goes on as it was, and not otherwise."""
    config = lambda **changed: task_config(tiny.settings(tokenizer_dir, **changed))
    write_config(config(), tmp_path)
    settings = json.loads((tmp_path / FILE).read_text())
    del settings['optimizer']['schedule'], settings['ema_decay']
    (tmp_path / FILE).write_text(json.dumps(settings))
    assert config_changes(config(), tmp_path) == []
    with pytest.raises(RequestError, match=r'\(config.ema_decay was 0.0, is 0.5\)'):
        config_changes(config(ema_decay=0.5), tmp_path)


def test_a_run_of_before_keeps_its_loss(tmp_path):
    """The recipe of ADE20K has since another loss and schedule: it does not go on with them."""
    config = lambda **changed: task_config(tiny.segment_settings(**changed))
    linear = {'schedule': 'linear', 'warmup_steps': 1}
    write_config(config(optimizer=linear), tmp_path)
    settings = json.loads((tmp_path / FILE).read_text())
    del settings['avg_non_ignore']
    (tmp_path / FILE).write_text(json.dumps(settings))
    assert config_changes(config(optimizer=linear), tmp_path) == []
    message = (
        r'\(config.avg_non_ignore was True, is False; '
        r"config.optimizer.schedule was 'linear', is 'poly'\)"
    )
    with pytest.raises(RequestError, match=message):
        new = {'schedule': 'poly', 'warmup_steps': 1}
        config_changes(config(optimizer=new, avg_non_ignore=False), tmp_path)


def test_settings_that_cannot_train(tokenizer_dir):
    for changed, message in (
        ({'lr': -1.0}, r'config.optimizer.lr is -1.0: it takes a number in \[0, 1000000\]'),
        ({'beta2': 1.0}, r'beta2 is 1.0: it takes a number in \[0, 1\)'),
    ):
        with pytest.raises(RequestError, match=message):
            task_config(tiny.settings(tokenizer_dir, optimizer=changed))


def test_curves_of_a_run_that_was_killed(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert curves.read_metrics(tmp_path / 'metrics.jsonl') == {'loss': ([1], [2.5])}
