"""Segmentation runs: on any mesh, in parts, stopped and resumed, evaluated on whole pictures."""

import csv
import json

import chex
import jax
import numpy as np
from PIL import Image
import pytest

from beit_jax.data.sources.shapes import SHAPES
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.run import MeshConfig, OptimizerConfig
from beit_jax.tasks import make_task
from beit_jax.train import evaluation, loop, run, sharding
from beit_jax.train import optimizer as optimizers
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.stepping import Stepper
from beit_jax.weights.trees import leaves_by_path
from tests import tiny
from tests.data.pairs import write_pairs
from tests.train.test_mesh import run_steps
from tests.train.test_resume import assert_same_run, metrics_lines

CLASSES = tuple('abcdefg')
# Adam makes steps of noise where a gradient is 0 but for rounding, as that of a bias before batch
# norm: a large eps does not
WIDE = {
    'batch_size': 16,
    'distort': False,
    'ema_decay': 0.5,
    'model': {'width': 32, 'hidden': 64, 'depth': 2},
    'head': {'channels': 16, 'auxiliary_channels': 8},
    'optimizer': {'eps': 1e-2, 'schedule': 'linear'},
}
RUN = {
    'total_steps': 4,
    'save_every': 2,
    'evaluate_every': 4,
    'accumulate_steps': 2,
    'ema_decay': 0.9,
    'pictures': 2,
    'inference': {'windows': 3},
}


def make(**changed):
    return make_task(task_config(tiny.segment_settings(**WIDE | changed)).resolve(37, CLASSES))


def pictures():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (16, 20, 20, 3), np.uint8)
    label_map = random.choice([*range(7), 255], (16, 20, 20)).astype(np.uint8)
    return {'image': image, 'label_map': label_map}


@pytest.fixture(scope='module')
def single():
    return run_steps(make(), sharding.make_mesh(MeshConfig(), jax.devices()[:1]), 3, pictures())


@pytest.mark.parametrize('shape', [(8, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_mesh_gives_the_run_of_one_device(shape, single):
    """Loss, parameters, and what batch norm measured over the whole batch."""
    losses, params = run_steps(
        make(),
        sharding.make_mesh(MeshConfig(data=shape[0], fsdp=shape[1], tensor=shape[2])),
        3,
        pictures(),
    )
    np.testing.assert_allclose(losses, single[0], rtol=0, atol=2e-5)
    chex.assert_trees_all_close(params, single[1], rtol=1e-5, atol=1e-4)
    for path, leaf in leaves_by_path(params).items():
        if path.endswith(('running_mean', 'running_var')):
            assert np.abs(leaf - (0.0 if path.endswith('mean') else 1.0)).max() > 1e-3, path


def test_statistics_are_not_learned():
    """No decay and no update, whatever the learning rate."""
    params = {
        'norm': {
            name: np.full(3, 2.0, np.float32) for name in ('scale', 'running_mean', 'running_var')
        }
    }
    gradients = {
        'norm': {name: np.full(3, float(name == 'scale'), np.float32) for name in params['norm']}
    }
    optimizer = optimizers.make_optimizer(OptimizerConfig(weight_decay=0.5), lambda _: 1.0, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert (
        np.any(updates['norm']['scale'])
        and not np.any(updates['norm']['running_mean'])
        and not np.any(updates['norm']['running_var'])
    )
    table = optimizers.parameter_table(make().abstract, 0.9)
    assert [
        line.split()[-2:]
        for line in table.splitlines()
        if line.startswith('head/fuse/norm/running_var')
    ] == [['-', '1']]


@pytest.fixture(scope='module')
def one_device_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, 'make_mesh', lambda config: sharding.make_mesh(config, jax.devices()[:1])
        )
        workdir = tmp_path_factory.mktemp('uninterrupted')
        assert loop.train(task_config(tiny.segment_settings(**RUN)), workdir) == 0
        yield workdir


def test_resume_is_bitwise(one_device_run, tmp_path, monkeypatch):
    """Crops, colours, dropout, running statistics and their moving average all follow from the
    step."""
    config = task_config(tiny.segment_settings(**RUN))
    with monkeypatch.context() as patch:
        patch.setattr(Stop, 'asked', lambda self, number: number == 3)
        assert loop.train(config, tmp_path) == loop.STOPPED
    assert loop.train(config, tmp_path) == 0
    assert_same_run(tmp_path, one_device_run)
    last = metrics_lines(tmp_path)[-1]
    assert {'eval/miou', 'eval/mean_accuracy', 'eval/pixel_accuracy'} < last.keys() and last[
        'eval/images'
    ] == 13
    assert sorted(path.name for path in (tmp_path / 'images').iterdir()) == [
        '00000.png',
        '00001.png',
    ]
    assert [row['class'] for row in csv.DictReader((tmp_path / 'classes.csv').open())] == [
        *SHAPES,
        'background',
    ]


def test_evaluate_alone(one_device_run, tmp_path, capfd):
    """The figures that training logged last, from another work directory; not from an encoder, nor
    with other classes."""
    capfd.readouterr()
    assert (
        evaluation.evaluate(
            task_config(tiny.segment_settings(**RUN, init=str(one_device_run))), tmp_path
        )
        == 0
    )
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures.pop('eval/images_per_second') > 0
    assert figures == {
        name: value for name, value in metrics_lines(one_device_run)[-1].items() if name != 'step'
    }
    assert (
        (tmp_path / 'images' / '00000.png').exists()
        and (tmp_path / 'classes.csv').exists()
        and not (tmp_path / 'predictions.csv').exists()
    )
    with pytest.raises(RequestError, match=r'the heads of .* are for 11 classes'):
        evaluation.evaluate(
            task_config(tiny.segment_settings(**RUN, init=str(one_device_run), num_classes=12)),
            tmp_path,
        )


@pytest.mark.once
def test_masks_of_one_class(tmp_path, capfd):
    """Said before the first step; no mean over one class among the figures."""
    path = write_pairs(tmp_path / 'set', 3, 'training')
    write_pairs(tmp_path / 'set', 3, 'validation')
    (tmp_path / 'set' / 'classes.txt').write_text('ground\nfigure\n')
    for file in (tmp_path / 'set' / 'annotations').rglob('*.png'):
        label_map = np.asarray(Image.open(file))
        Image.fromarray(np.where(label_map > 2, 255, 0).astype(np.uint8)).save(file)
    data = {'name': 'folder', 'path': path}
    settings = tiny.segment_settings(**RUN | {'total_steps': 2, 'pictures': 0}, data=data)
    assert loop.train(task_config(settings), tmp_path / 'run') == 0
    out = capfd.readouterr().out
    for which in ('training', 'held-out'):
        assert f'WARNING: 3 of 3 {which} annotations looked at: 1 of 2 classes (no pixel of' in out
    assert 'the held-out annotations have 1 class (ground): no eval/miou' in out
    last = metrics_lines(tmp_path / 'run')[-1]
    assert {name for name in last if name.startswith('eval/')} == {
        'eval/pixel_accuracy',
        'eval/images',
    }


@pytest.mark.slow
def test_a_signal_ends_an_evaluation(one_device_run, tmp_path, monkeypatch):
    """The run is saved, and begins with that evaluation when it goes on."""
    config = task_config(tiny.segment_settings(**RUN))
    with monkeypatch.context() as patch:
        patch.setattr(Stop, 'heard', lambda self: True)
        patch.setattr(Stop, 'asked', lambda self, number: False)
        patch.setattr(Stepper, '_compile', lambda self, state, batch: None)
        assert loop.train(config, tmp_path) == loop.STOPPED
    assert 'eval/miou' not in metrics_lines(tmp_path)[-1]
    assert loop.train(config, tmp_path) == 0
    assert metrics_lines(tmp_path)[-1] == metrics_lines(one_device_run)[-1]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Each labels its own pictures on its own devices; each picture is counted once."""
    arguments = tiny._command('W', 'segment', {'init': ''} | tiny.segment_settings(**RUN))
    in_folder = lambda name: [part.replace('=W', f'={tmp_path / name}') for part in arguments]
    pair = tiny.start_pair(in_folder('pair'))
    one = tiny.run(in_folder('one'), JAX_NUM_CPU_DEVICES='2')
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert one.returncode == 0, one.stderr
    rows, expected = metrics_lines(tmp_path / 'pair'), metrics_lines(tmp_path / 'one')
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    assert rows[-1]['eval/images'] == 13
    for row, wanted in zip(rows, expected):
        for name in wanted:
            assert row[name] == pytest.approx(wanted[name], abs=1e-3), (wanted['step'], name)


@pytest.mark.slow  # a quarter of an hour, and five minutes for the encoder where it is not there
def test_pretraining_helps(tmp_path):
    """The quickstart's figures, means of three seeds: above 0.6, and above what the same budget
    gives from random weights."""

    def train(recipe, workdir, *flags):
        command = ['main.py', f'--config=configs/quickstart/{recipe}', f'--workdir={workdir}']
        done = tiny.run([*command, *flags], timeout=1800)
        assert done.returncode == 0, done.stderr
        return metrics_lines(workdir)[-1]

    encoder = tiny.REPOSITORY / 'runs' / 'quickstart' / 'pretrain'
    if not (encoder / 'checkpoints' / '1600').is_dir():
        encoder, tokenizer = tmp_path / 'pretrain', tmp_path / 'tokenizer'
        train('tokenizer.py', tokenizer)
        train('pretrain.py', encoder, f'--config.tokenizer.path={tokenizer / "tokenizer"}')
    mean = {}
    for variant, flags in (('', (f'--config.init={encoder}',)), ('scratch', ())):
        found = [
            train(
                f'segment.py:{variant}',
                tmp_path / f'{variant}{seed}',
                f'--config.seed={seed}',
                *flags,
            )['eval/miou']
            for seed in range(3)
        ]
        mean[variant] = sum(found) / 3
        print(f'mIoU on shapes, {variant or "pre-trained"}: {mean[variant]:.3f} {found}')
    assert mean[''] > max(0.6, mean['scratch'])
