"""Weights on the hub stay those that a run began with, wherever their branch goes."""

import json

import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir import pinned as module
from beit_jax.train.workdir.changes import config_changes, write_config
from beit_jax.train.workdir.pinned import WEIGHTS, pinned
from beit_jax.weights.hub import repository
from tests import tiny
from tests.hub_server import files_of
from tests.train.test_resume import assert_same_run

OTHER = {'model.pth': b'other'}


def classify(init: str):
    return task_config(tiny.classify_settings(init=init))


def test_a_branch_that_moves(hub, tmp_path):
    """The config names the commit, which the same command goes on with; another revision, or a
    folder in its place, is another config."""
    first = hub.add('owner/beit', {'model.pth': b'first'})
    hub.repositories['owner/beit'].refs['v1'] = first
    began = pinned(classify('owner/beit'), tmp_path)
    assert began.init == f'owner/beit@main:{first}'
    write_config(began, tmp_path)
    assert hub.add('owner/beit', OTHER) != first
    hub.down = 500  # nothing is asked
    for name in ('owner/beit', 'owner/beit@main', began.init):
        again = pinned(classify(name), tmp_path)
        assert again == began and not config_changes(again, tmp_path)
    with pytest.raises(StorageError, match=r'config.init=owner/beit@v1: .* answers 500'):
        pinned(classify('owner/beit@v1'), tmp_path)
    hub.down = 0
    for name in ('owner/beit@v1', f'owner/beit@{first}', 'hf://owner/beit'):
        with pytest.raises(RequestError, match=r"another config \(config.init was 'owner"):
            config_changes(pinned(classify(name), tmp_path), tmp_path)
    (tmp_path / 'owner' / 'beit').mkdir(parents=True)
    assert pinned(classify('owner/beit'), tmp_path).init == 'owner/beit'


def test_every_setting_that_names_weights(hub, tmp_path):
    sha = hub.add('owner/beit', OTHER)
    settings = {
        'pretrain': lambda: tiny.settings('owner/beit', init='owner/beit'),
        'probe': lambda: tiny.classify_settings(task='probe', encoder='owner/beit'),
        'vqkd': lambda: {'task': 'vqkd', 'total_steps': 3, 'teacher': {'path': 'owner/beit'}},
    }
    found = set()
    for make in settings.values():
        config = pinned(task_config(make()), tmp_path)
        for key in WEIGHTS:
            group, _, name = key.rpartition('.')
            value = getattr(getattr(config, group, None) if group else config, name or key, '')
            found |= {key} if value == f'owner/beit@main:{sha}' else set()
    assert found == set(WEIGHTS)


def test_host_0_decides(hub, tmp_path, monkeypatch):
    """Another host takes its commit, or finds one itself for what it alone has by that name."""
    sha, theirs = hub.add('owner/beit', OTHER), '7' * 40
    table = {'init': ['owner/beit@main', f'owner/beit@main:{theirs}']}
    monkeypatch.setattr(module.jax, 'process_index', lambda: 1)
    monkeypatch.setattr(module, 'gathered', lambda text: [json.dumps(table), text])
    assert pinned(classify('owner/beit'), tmp_path).init == f'owner/beit@main:{theirs}'
    table.clear()
    assert pinned(classify('owner/beit'), tmp_path).init == f'owner/beit@main:{sha}'


def test_a_run_goes_on(hub, one_device, tokenizer_dir, tmp_path, monkeypatch):
    """With the tokenizer that it began with, whose branch has another by then: as the run of a
    folder, bit for bit, and it says which commit it was."""
    sha, workdir = hub.add('owner/tokenizer', files_of(tokenizer_dir)), tmp_path / 'run'
    local, config = (
        task_config(tiny.settings(path, total_steps=3))
        for path in (tokenizer_dir, 'owner/tokenizer')
    )
    with monkeypatch.context() as patch:
        patch.setattr(Stop, 'asked', lambda self, step: step == 2)
        assert loop.train(config, workdir) == loop.STOPPED
    hub.add('owner/tokenizer', OTHER)
    assert loop.train(config, workdir) == 0 == loop.train(local, tmp_path / 'uninterrupted')
    assert_same_run(workdir, tmp_path / 'uninterrupted')
    saved = json.loads((workdir / 'config.json').read_text())['tokenizer']['path']
    assert saved == f'owner/tokenizer@main:{sha}' and repository(saved).fixed == sha
