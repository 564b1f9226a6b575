"""Studies whose runs are not trained."""

import json

import pytest

from beit_jax.studies import running
from tests import tiny
from tests.studies import small_study


@pytest.fixture
def ran(monkeypatch):
    """Folders of the runs in the order in which they are trained, with their configs; training
    itself is left out."""
    runs = {}

    def train(config, workdir):
        assert workdir not in runs, 'done twice'
        runs[workdir] = config
        metrics = {
            'tokenizer': {'eval/psnr': 20.0},
            'vqkd': {'eval/distance': 0.1},
            'pretrain': {'eval/token_accuracy': 0.25 + 0.5 * config.seed, 'eval/loss': 3.0},
            'classify': {'eval/accuracy': small_study.score(config, workdir.parts[-2])},
            'probe': {'eval/accuracy': small_study.probed(config)}
            | {f'eval/layer_{layer:02d}/both': 0.1 * layer for layer in (1, 2)}
            | {'eval/layer_01/cls': 0.41, 'eval/layer_02/cls': 0.23, 'eval/layer_01/mean': 0.29},
        }[config.task]
        if config.task == 'probe':
            table = {'k-NN cls': [0.11, 0.31], 'k-NN mean': [0.37, 0.23 + 0.04 * config.seed]}
            (workdir / 'probe.json').write_text(json.dumps(table))
        (workdir / 'metrics.jsonl').write_text(
            f'{json.dumps({"step": 1} | metrics)}\n{json.dumps({"step": 2, "loss": 1.0})}\n'
        )
        return 0

    monkeypatch.setattr(running.loop, 'train', train)
    monkeypatch.chdir(tiny.REPOSITORY)
    return runs


@pytest.fixture
def path(tmp_path):
    small_study.write(tmp_path / 'study.py')
    return tmp_path / 'study.py'
