"""Runs on several classes a picture and on numbers: evaluated to the last image, exported, and at
work, in the units of the table."""

import csv
import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest
import sklearn.metrics
import torch

import beit_jax
from beit_jax.settings.mapping import task_config
from beit_jax.tools import export_weights, predict
from beit_jax.train import evaluation, loop, run, sharding
from beit_jax.train.opening import open_run
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.start import load_params
from tests import tiny, torch_models
from tests.tools.call import call
from tests.train.test_resume import assert_same_run, metrics_lines

pytestmark = pytest.mark.usefixtures('one_device')
NAMES = ('blue', 'green', 'red')
COUNT, HELD_OUT = 37, 13


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Coloured noise of the model's size, and what colours it has; {folder: rows}."""
    root, random, found = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), {}
    for part, count in (('train', COUNT), ('held', HELD_OUT)):
        (root / part).mkdir()
        rows = found[root / part] = []
        for number in range(count):
            pixels, has = random.integers(0, 90, (20, 20, 3), np.uint8), random.random(3) < 0.4
            pixels += np.uint8(150) * has[::-1]
            Image.fromarray(pixels).save(root / part / f'{number:02}.png')
            names = '|'.join(name for name, there in zip(NAMES, has) if there)
            rows.append((f'{number:02}.png', names, 1e4 + pixels.mean(), pixels[..., 0].mean()))
        with (root / part / 'metadata.csv').open('w', newline='') as file:
            csv.writer(file).writerows([('file_name', 'labels', 'light', 'warmth'), *rows])
    return found


def settings(pictures, labels, **changed):
    train, held = map(str, pictures)
    data = {'name': 'folder', 'path': train, 'evaluate_path': held, 'labels': labels}
    data |= {'label_field': 'light,warmth' * (labels == 'numbers')}
    data |= {'color_jitter': (0.0, 0.0, 0.0), 'evaluate_crop': 1.0}
    model = {'depth': 1, 'positions': 'layer_bias'}
    given = {'total_steps': 6, 'save_every': 3, 'evaluate_every': 6, 'head_scale': 1.0}
    return task_config(
        tiny.classify_settings(data=data, model=model, ema_decay=0.5, **given | changed)
    )


def told(workdir, pictures, capsys):
    """(what an evaluation of a run prints, its table, the logits of the held-out pictures)."""
    config = task_config_of(workdir)
    assert evaluation.evaluate(config, workdir) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = list(csv.DictReader((workdir / 'predictions.csv').open()))
    model, folder = beit_jax.load(workdir), list(pictures)[1]
    images = model.preprocess([folder / row[0] for row in pictures[folder]])
    return printed, rows, np.asarray(model.logits(images)), model, images


def task_config_of(workdir):
    return task_config(json.loads((workdir / 'config.json').read_text()))


@pytest.mark.once
def test_several_classes(pictures, tmp_path, capsys, monkeypatch):
    config = settings(pictures, 'classes')
    assert loop.train(config, tmp_path / 'run') == 0
    monkeypatch.setattr(Stop, 'asked', lambda self, number: number == 4)
    assert loop.train(config, tmp_path / 'stopped') == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path / 'stopped') == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'run')
    printed, rows, logits, model, images = told(tmp_path / 'run', pictures, capsys)
    names = [row[1].split('|') for row in pictures[list(pictures)[1]]]
    marks = np.array([[name in row for name in NAMES] for row in names])
    wanted = [sklearn.metrics.average_precision_score(marks[:, i], logits[:, i]) for i in range(3)]
    assert printed['eval/map'] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert printed['eval/images'] == HELD_OUT and printed['eval/classes'] == 3
    targets = torch.tensor(marks, dtype=torch.float32)
    loss = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits), targets)
    assert printed['eval/loss'] == pytest.approx(loss.item(), abs=1e-6)
    last = metrics_lines(tmp_path / 'run')[-1]
    assert last['eval/map'] == pytest.approx(printed['eval/map'], abs=1e-9)
    assert [row['label'].split('|') for row in rows] == names
    best = 1 / (1 + np.exp(-logits.max(1)))
    np.testing.assert_allclose([float(row['probability1']) for row in rows], best, atol=2e-6)
    call(export_weights, input=tmp_path / 'run', format='huggingface', output=tmp_path / 'hub')
    peer = torch_models.transformers.BeitForImageClassification.from_pretrained(tmp_path / 'hub')
    assert peer.config.problem_type == 'multi_label_classification'
    assert tuple(peer.config.id2label.values()) == NAMES
    np.testing.assert_allclose(theirs(peer, model, images), logits, atol=1e-4)
    # and its loss is ours
    given = torch.tensor(normalised(model, images).transpose(0, 3, 1, 2))
    assert peer(given, labels=targets).loss.item() == pytest.approx(loss.item(), abs=1e-4)


def normalised(model, images):
    mean, std = (np.float32(model.architecture[name]) for name in ('mean', 'std'))
    return (images / np.float32(255) - mean) / std


def theirs(peer, model, images):
    with torch.no_grad():
        return peer(torch.tensor(normalised(model, images).transpose(0, 3, 1, 2))).logits


def test_numbers(pictures, tmp_path, capsys):
    assert loop.train(settings(pictures, 'numbers'), tmp_path / 'run') == 0
    printed, rows, values, model, images = told(tmp_path / 'run', pictures, capsys)
    train, held = (np.array([row[2:] for row in part]) for part in pictures.values())
    std, mean = train.std(0), train.mean(0)
    np.testing.assert_allclose(model.architecture['targets']['std'], std, rtol=1e-4)
    scaled = [torch.tensor((each - mean) / std) for each in (values, held)]
    assert printed['eval/loss'] == pytest.approx(torch.nn.MSELoss()(*scaled).item(), rel=1e-3)
    for place, name in enumerate(('light', 'warmth')):
        pair = held[:, place].astype(np.float32), values[:, place]
        r2, error = sklearn.metrics.r2_score(*pair), sklearn.metrics.mean_absolute_error(*pair)
        assert printed[f'eval/{name}/r2'] == pytest.approx(r2, abs=1e-3)
        assert printed[f'eval/{name}/mae'] == pytest.approx(error, rel=1e-3)
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, values[:, place], rtol=1e-5)
        labels = [float(row[f'{name}_label']) for row in rows]
        np.testing.assert_allclose(labels, held[:, place], rtol=1e-6)
    call(predict, checkpoint=tmp_path / 'run', images=list(pictures)[1], output=tmp_path / 'p.csv')
    table = list(csv.DictReader((tmp_path / 'p.csv').open()))
    assert table[0].keys() == {'image', 'light', 'warmth'}
    np.testing.assert_allclose([float(row['light']) for row in table], values[:, 0], rtol=1e-6)
    call(export_weights, input=tmp_path / 'run', format='huggingface', output=tmp_path / 'hub')
    peer = torch_models.transformers.BeitForImageClassification.from_pretrained(tmp_path / 'hub')
    assert peer.config.problem_type == 'regression'
    np.testing.assert_allclose(theirs(peer, model, images), values, rtol=1e-5, atol=1e-2)
    back = beit_jax.load(tmp_path / 'hub')
    np.testing.assert_allclose(back.logits(images), values, rtol=1e-5, atol=1e-2)


def test_eight_devices_measure_alike(pictures, tmp_path, monkeypatch):
    """What is told of each image is gathered from all of them, the padded rows left out."""
    monkeypatch.setattr(run, 'make_mesh', sharding.make_mesh)
    config = settings(pictures, 'classes', total_steps=2, evaluate_every=2)
    assert loop.train(config, tmp_path / 'eight') == 0
    monkeypatch.setattr(run, 'make_mesh', lambda one: sharding.make_mesh(one, jax.devices()[:1]))
    given = dataclasses.replace(config, init=str(tmp_path / 'eight'))
    opened = open_run(given, tmp_path / 'none', 'evaluate')
    params, *_ = load_params(opened, given.init)
    measured = evaluation.make_evaluation(opened)(params)
    last = metrics_lines(tmp_path / 'eight')[-1]
    for name in ('map', 'loss', 'images'):
        assert measured[f'eval/{name}'] == pytest.approx(last[f'eval/{name}'], abs=1e-6)
