"""Fine-tuning runs: stopped and resumed, in parts, on any mesh, and evaluated to the last image."""

import csv
import json

import jax
import numpy as np
import pytest

from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.shapes import SHAPES
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train import evaluation, loop, run, sharding, step
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir.prediction_table import PredictionsWriter
from beit_jax.weights.checkpoint import load_params
from tests import tiny
from tests.train.test_resume import assert_same_run, metrics_lines

AUGMENTED = {
    'batch_size': 16,
    'total_steps': 4,
    'save_every': 2,
    'evaluate_every': 4,
    'ema_decay': 0.9,
    'model': {'drop_path': 0.2},
    'rand_augment': 'rand-m9-mstd0.5-inc1',
    'data': {'labels_per_class': 3, 'num_examples': 200},
}


pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('uninterrupted')
    assert loop.train(task_config(tiny.classify_settings(**AUGMENTED)), workdir) == 0
    return workdir


def test_resume_is_bitwise(uninterrupted, tmp_path, monkeypatch):
    """RandAugment, erasing, mixup, CutMix, drop path and the moving average all follow from the
    step."""
    config = task_config(tiny.classify_settings(**AUGMENTED))
    for stop in (1, 3):
        monkeypatch.setattr(Stop, 'asked', lambda self, number, stop=stop: number == stop)
        assert loop.train(config, tmp_path) == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted)
    assert (tmp_path / 'config.json').exists() and json.loads(
        (tmp_path / 'config.json').read_text()
    )['num_classes'] == len(SHAPES)


def test_in_parts(uninterrupted, tmp_path):
    """What is drawn for a batch is drawn before it is cut: mixing does not depend on the memory of
    a device."""
    loop.train(task_config(tiny.classify_settings(**AUGMENTED, accumulate_steps=2)), tmp_path)
    for row, wanted in zip(metrics_lines(tmp_path), metrics_lines(uninterrupted), strict=True):
        for name in wanted:
            assert row[name] == pytest.approx(wanted[name], abs=1e-5), (wanted['step'], name)


def test_every_step_draws_anew(tmp_path):
    """The same pictures at a learning rate of zero: only what is drawn differs. And the average
    that is kept is what is evaluated."""
    config = task_config(
        tiny.classify_settings(batch_size=8, ema_decay=0.5, optimizer={'lr': 0.0, 'final_lr': 0.0})
    )
    task, mesh = make_task(config.resolve(37, SHAPES)), run.make_mesh(config.mesh)
    optimizer = optimizers.make_optimizer(
        config.optimizer, lambda _: 0.0, states.abstract_params(task)
    )
    state = states.initial_state(task, optimizer, mesh, states.initial_params(task, 0))
    train_step = step.make_train_step(task, optimizer, lambda _: 0.0, mesh, 5)
    random = np.random.default_rng(0)
    batch = {
        'image': random.integers(0, 256, (8, 20, 20, 3), np.uint8),
        'label': np.arange(8, dtype=np.int32),
        'valid': np.ones(8, np.float32),
        'view': np.arange(8, dtype=np.uint32),
        'grey': np.full(8, 0.4, np.float32),
        'substituted': np.zeros(8, bool),
    }
    losses = []
    for _ in range(3):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics['grad_norm']))
    assert len(set(losses)) == 3
    assert states.averaged_params(state) is state['ema']


def test_from_a_checkpoint_that_predicts_pixels(tmp_path):
    """Its encoder is what fine-tuning starts from: at a learning rate of zero also what it ends
    with."""
    # compiling is what takes the time
    model = {'positions': 'layer_bias', 'layer_scale': 0.1, 'depth': 1}
    params = tiny.save_checkpoint(
        tmp_path / 'pretrain',
        make_task(task_config(tiny.settings('', target='pixels', model=model))),
    )
    config = tiny.classify_settings(
        init=str(tmp_path / 'pretrain'),
        total_steps=1,
        model=model,
        erase=0.0,
        optimizer={'lr': 0.0, 'final_lr': 0.0, 'warmup_steps': 0},
        data={'num_evaluate_examples': 0, 'color_jitter': (0.0, 0.0, 0.0)},
    )
    assert loop.train(task_config(config), tmp_path / 'finetune') == 0
    found, description = load_params(str(tmp_path / 'finetune'))
    del params['encoder']['mask_token']
    jax.tree.map(np.testing.assert_array_equal, found['encoder'], params['encoder'])
    assert (
        description['architecture']['num_classes'] == len(SHAPES)
        and 'loss' in metrics_lines(tmp_path / 'finetune')[0]
    )


def test_names_of_predictions(tmp_path):
    """An image that could not be read has no row, and those after it keep their names."""
    held_out = open_source(task_config(tiny.classify_settings(**EVALUATED)).data, 'evaluate')
    with PredictionsWriter(tmp_path / 'p.csv', held_out, active=True) as predictions:
        for _ in range(2):
            predictions.write(
                {
                    'label': np.array([3, 1, 4]),
                    'valid': np.array([1.0, 0.0, 1.0]),
                    'classes': np.array([[5, 9], [2, 6], [5, 3]]),
                    'probabilities': np.full((3, 2), 0.25),
                }
            )
    rows = list(csv.DictReader((tmp_path / 'p.csv').open()))
    assert [row['image'] for row in rows] == [held_out.name(i) for i in (0, 2, 3, 5)]
    assert [row['class2'] for row in rows] == [SHAPES[i] for i in (9, 3, 9, 3)]


EVALUATED = {
    'batch_size': 24,
    'data': {
        'num_evaluate_examples': 101,
        'evaluate_crop': 1.0,
        'mean': (0.5, 0.5, 0.5),
        'std': (0.25, 0.25, 0.25),
    },
}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights whose predictions differ from image to image."""
    task = make_task(
        task_config(tiny.classify_settings(**EVALUATED, head_scale=20.0)).resolve(37, SHAPES)
    )
    workdir = tmp_path_factory.mktemp('checkpoint')
    tiny.save_checkpoint(workdir, task, classes=SHAPES)
    return workdir


def evaluate_here(checkpoint, workdir, devices, monkeypatch, capfd):
    monkeypatch.setattr(
        run, 'make_mesh', lambda config: sharding.make_mesh(config, jax.devices()[:devices])
    )
    capfd.readouterr()
    config = task_config(tiny.classify_settings(**EVALUATED, init=str(checkpoint), head_scale=20.0))
    assert evaluation.evaluate(config, workdir) == 0
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_evaluation_on_any_mesh(checkpoint, tmp_path, monkeypatch, capfd):
    """101 images on 1, 3 and 8 devices, and on two processes: the same accuracies, each image
    counted once."""
    settings = EVALUATED | {'init': str(checkpoint), 'head_scale': 20.0}
    command = tiny.classify_arguments(tmp_path / 'pair', **settings)
    pair = tiny.start_pair(command, '--mode=evaluate')
    results = [
        evaluate_here(checkpoint, tmp_path / str(devices), devices, monkeypatch, capfd)
        for devices in (1, 3, 8)
    ]
    outputs = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    results.append(json.loads(outputs[0][0].splitlines()[-1]))
    assert all(result.pop('eval/images_per_second') > 0 for result in results)
    losses = [result.pop('eval/loss') for result in results]
    assert losses == pytest.approx(losses[:1] * 4, rel=1e-5)
    assert (
        results[0]['eval/images'] == 101
        and 0 < results[0]['eval/accuracy'] < results[0]['eval/top5_accuracy'] < 1
    )
    assert all(result == results[0] for result in results[1:]), results

    tables = [
        list(csv.DictReader((tmp_path / name / 'predictions.csv').open()))
        for name in ('1', '3', '8', 'pair')
    ]
    held_out = open_source(task_config(tiny.classify_settings(**EVALUATED)).data, 'evaluate')
    assert [row['image'] for row in tables[0]] == [held_out.name(i) for i in range(101)]
    assert [row['label'] for row in tables[0]] == [SHAPES[held_out.label(i)] for i in range(101)]
    assert np.mean([row['class1'] == row['label'] for row in tables[0]]) == pytest.approx(
        results[0]['eval/accuracy'], abs=1e-6
    )
    for table in tables[1:]:
        for name in ('image', 'label', 'class1'):
            assert [row[name] for row in table] == [row[name] for row in tables[0]]
        np.testing.assert_allclose(
            [float(row['probability5']) for row in table],
            [float(row['probability5']) for row in tables[0]],
            atol=1e-5,
        )


def test_what_cannot_be_evaluated(tokenizer_dir, checkpoint, tmp_path):
    """A pre-trained encoder has no head, and a classifier none for other classes."""
    tiny.save_checkpoint(
        tmp_path / 'pretrain',
        make_task(task_config(tiny.settings(tokenizer_dir, model={'positions': 'layer_bias'}))),
    )
    with pytest.raises(
        RequestError, match='has nothing for head: it cannot be evaluated before it is fine-tuned'
    ):
        evaluation.evaluate(
            task_config(
                tiny.classify_settings(
                    init=str(tmp_path / 'pretrain'), model={'positions': 'layer_bias'}
                )
            ),
            tmp_path / 'w',
        )
    with pytest.raises(RequestError, match='is of another model'):
        evaluation.evaluate(
            task_config(tiny.classify_settings(init=str(checkpoint), model={'width': 32})),
            tmp_path / 'w',
        )
    with pytest.raises(RequestError, match=r'the head of .* is for 10 classes; this run has 12'):
        evaluation.evaluate(
            task_config(tiny.classify_settings(init=str(checkpoint), num_classes=12)),
            tmp_path / 'w',
        )
