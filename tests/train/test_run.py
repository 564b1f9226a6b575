"""What a run says and refuses when it is opened."""

import dataclasses
import json

import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.models import attention, kernels, ways
from beit_jax.models.architecture import encoder_config
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.ways import PARTS, hindrances
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train import run as runs
from beit_jax.train.run import Run
from beit_jax.train.workdir.changes import config_changes, write_config
from beit_jax.weights.tokenizer import load_tokenizer, save_tokenizer
from tests import tiny


def opened(tokenizer_dir, workdir, **changed) -> Run:
    return Run(task_config(tiny.settings(tokenizer_dir, **changed)), workdir)


def test_how_it_computes_is_said_and_kept(tokenizer_dir, tmp_path):
    run = opened(tokenizer_dir, tmp_path, deterministic=True)
    assert run.summary().endswith(' of cpu; attention plain; projections plain; mlp plain')
    assert run.notes == ['config.deterministic changes nothing on a cpu']
    plain = dict.fromkeys(PARTS, 'plain')
    computed = {'device': 'cpu', **plain, 'deterministic': False}
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


@pytest.mark.parametrize(
    ('part', 'way'),
    [('attention', 'cudnn'), ('attention', 'pallas'), ('projections', 'pallas'), ('mlp', 'pallas')],
)
def test_kernels_that_are_not_there(part, way, tokenizer_dir, tmp_path):
    with pytest.raises(RequestError, match=f'config.model.{part}={way}: .* this is a cpu'):
        opened(tokenizer_dir, tmp_path, model={part: way})


def test_what_hinders_kernels_is_said(monkeypatch, tokenizer_dir):
    """On a TPU whose kernels would be faster, and nowhere else."""
    config = task_config(tiny.settings(tokenizer_dir))
    said = lambda model: hindrances(model, config.grid, config.compute_dtype)
    assert said(config.model) == []
    for module in (ways, attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'target_kind', lambda: 'TPU v6 lite')
    width, head = config.model.width, config.model.width // config.model.heads
    assert head % 16 and width % 128
    assert said(config.model) == [
        f'config.model.attention is plain: heads are {head} wide, no multiple of 16: change '
        'config.model.width or config.model.heads',
        *(
            f'config.model.{part} is plain: they do not take float32: set '
            'config.compute_dtype=bfloat16'
            for part in ('projections', 'mlp')
        ),
    ]
    assert said(dataclasses.replace(config.model, **dict.fromkeys(PARTS, 'plain'))) == []
    assert len(said(dataclasses.replace(config.model, remat=True))) == 1  # of attention


@pytest.mark.parametrize('part', ['projections', 'mlp'])
def test_kernels_where_blocks_are_recomputed(part, monkeypatch):
    """Plain, but where they are asked for."""
    for module in (ways, attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'target_kind', lambda: 'TPU v5 lite')
    model, all_kernels = EncoderConfig(size='base'), dict.fromkeys(PARTS, 'pallas')
    found = lambda **changed: ways.ways(dataclasses.replace(model, **changed), (14, 14), 'bfloat16')
    plain = {'projections': 'plain', 'mlp': 'plain'}
    assert found() == all_kernels
    assert found(remat=True) == all_kernels | plain
    assert found(remat=True, **{part: 'pallas'}) == all_kernels | plain | {part: 'pallas'}


def test_a_run_goes_on_with_another_attention(tokenizer_dir, tmp_path):
    config = task_config(tiny.settings(tokenizer_dir))
    write_config(config, tmp_path)
    other = dataclasses.replace(config.model, **dict.fromkeys(PARTS, 'plain'))
    assert (
        config_changes(dataclasses.replace(config, model=other, deterministic=True), tmp_path) == []
    )


def test_a_model_is_opened_on_another_machine(tokenizer_dir, tmp_path):
    """What was trained by cuDNN runs where there is none."""
    architecture = opened(tokenizer_dir, tmp_path).task.describe()
    there = {'attention': 'cudnn', 'projections': 'pallas', 'mlp': 'pallas'}
    for name, way in there.items():
        assert getattr(encoder_config(architecture | {name: way}), name) == 'auto'
        architecture.pop(name)
        assert getattr(encoder_config(architecture), name) == 'auto'


@pytest.mark.once
def test_a_tokenizer_of_other_pictures(tokenizer_dir, tmp_path, capsys, one_device):
    """A line where it draws the pictures of the first batch more than 6 dB worse than its own; the
    run is the same to the bit."""
    config = task_config(tiny.settings(tokenizer_dir))
    task = Run(config, tmp_path / 'a').task
    tokenizer, params = load_tokenizer(str(tokenizer_dir), decoder=True)
    images = Run(config, tmp_path).batches.reread(1)['token_image'] / np.float32(255)
    drawn = np.asarray(tokenizer.decode(params, tokenizer.encode(params, images)))
    psnr = -10 * np.log10(np.mean((drawn - images) ** 2))
    never = lambda: pytest.fail('it is read where nothing is known')
    assert task.remarks(never) == []
    said = {}
    for known in (None, psnr + 5.9, psnr + 6.1):
        directory = tmp_path / str(known)
        save_tokenizer(directory, 'dvae', tokenizer.config, 10, params, known and float(known))
        settings = task_config(tiny.settings(directory))
        assert loop.train(settings, tmp_path / f'run_{known}') == 0
        said[known] = capsys.readouterr().out
    *near, far = said.values()
    assert f'draws these pictures at {psnr:.1f} dB PSNR, its own at {psnr + 6.1:.1f} dB' in far
    assert '--config.data.name=shapes' in far and not any('dB' in each for each in near)
    metrics = [(tmp_path / f'run_{known}' / 'metrics.jsonl').read_text() for known in said]
    losses = [[json.loads(line).get('loss') for line in text.splitlines()] for text in metrics]
    assert losses[0] == losses[1] == losses[2]
    no_decoder = {'encoder': params['encoder']}
    save_tokenizer(tmp_path / 'half', 'dvae', tokenizer.config, 10, no_decoder, 99.0)
    assert opened(tmp_path / 'half', tmp_path).task.remarks(never) == []
    assert opened('', tmp_path, target='pixels').task.remarks(never) == []
