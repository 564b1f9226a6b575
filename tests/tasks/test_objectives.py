"""What outputs are held against: losses as torch's, figures as scikit-learn's, on all images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import torch
from torch.nn import functional

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task, probe
from beit_jax.tasks.objectives import (
    Numbers,
    SeveralClasses,
    average_precisions,
    regression_scores,
)
from beit_jax.train import state as states
from beit_jax.weights.standardised import statistics
from tests import tiny

NAMES = ('a', 'b', 'c')
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(7, 3)).astype(np.float32) * 5
MARKS = (RANDOM.random((7, 3)) < 0.4).astype(np.float32)


def settings(labels, **changed):
    data = {'name': 'folder', 'labels': labels, 'color_jitter': (0.0, 0.0, 0.0)}
    data |= changed.pop('data', {})
    return task_config(tiny.classify_settings(data=data, **changed))


def make(labels, values=None, **changed):
    values = np.arange(6.0).reshape(2, 3) if values is None else values
    config = settings(labels, **changed)
    return make_task(config.resolve(len(values), NAMES, values.__getitem__))


def batch(labels):
    images = np.random.default_rng(1).integers(0, 256, (len(labels), 20, 20, 3), np.uint8)
    count = np.ones(len(labels), np.float32)
    view = np.arange(len(labels), dtype=np.uint32)
    return {'image': images, 'label': labels, 'valid': count, 'view': view, 'grey': count}


def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_several_classes_as_torch(smoothing):
    """The loss and its gradient, of targets that are smoothed as timm does and mixed."""
    targets = MARKS * (1 - smoothing) + smoothing / 3
    targets = 0.3 * targets + 0.7 * targets[::-1]
    theirs = torch.tensor(LOGITS, requires_grad=True)
    wanted = functional.binary_cross_entropy_with_logits(theirs, torch.tensor(targets))
    wanted.backward()
    found, slope = jax.value_and_grad(
        lambda logits: jnp.mean(SeveralClasses(3).losses(logits, targets))
    )(LOGITS)
    assert float(found) == pytest.approx(wanted.item(), abs=1e-6)
    np.testing.assert_allclose(slope, theirs.grad, atol=1e-7)


def test_targets_are_smoothed_and_mixed():
    """As timm's Mixup does it with one-hot targets: a share for all classes alike, then pairs."""
    task = make('classes', erase=0.0, mix={'mixup': 0.8, 'cutmix': 0.0})
    made = task.augment(batch(MARKS[:6]), jax.random.key(3), keys(6))
    smooth = MARKS[:6] * 0.9 + 0.1 / 3
    partners = smooth.reshape(3, 2, 3)[:, ::-1].reshape(6, 3)
    differing = smooth != partners
    shares = ((made['target'] - partners) / np.where(differing, smooth - partners, 1))[differing]
    assert 0 < shares[0] < 1 and len(shares) > 4
    np.testing.assert_allclose(shares, shares[0], atol=1e-5)
    np.testing.assert_allclose(made['target'][~differing], smooth[~differing], atol=1e-6)


@pytest.mark.parametrize('loss', ['mse', 'l1', 'huber'])
def test_numbers_as_torch(loss):
    """Of standardised numbers."""
    values = RANDOM.normal(size=(7, 3)).astype(np.float32) * (3, 0.01, 700) + (40, -2, 5)
    objective = Numbers(3, loss, tuple(values.mean(0)), tuple(values.std(0)))
    targets = (values - values.mean(0)) / values.std(0)
    np.testing.assert_allclose(objective.targets(values.astype(np.float32)), targets, atol=1e-5)
    peer = getattr(functional, f'{loss}_loss')
    wanted = peer(torch.tensor(LOGITS), torch.tensor(targets, dtype=torch.float32)).item()
    found = objective.losses(LOGITS, objective.targets(values.astype(np.float32)))
    assert float(jnp.mean(found)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('scores', ['all different', 'many the same', 'all the same'])
def test_average_precision_as_scikit_learn(scores):
    labels = (RANDOM.random((211, 5)) < (0.5, 0.1, 0.9, 0.01, 0)).astype(np.float32)
    labels[17, 3] = 1
    values = RANDOM.normal(size=(211, 5)).astype(np.float32) + labels
    if scores != 'all different':
        values = np.round(values) * (scores == 'many the same')
    found = average_precisions(labels, values)
    wanted = [sklearn.metrics.average_precision_score(labels[:, i], values[:, i]) for i in range(4)]
    np.testing.assert_allclose(found[:4], wanted, atol=1e-12)
    assert np.isnan(found[4])
    measured = SeveralClasses(5).measure({'label': labels, 'logits': values}, tuple('abcde'))
    assert measured['classes'] == 4 and measured['map'] == pytest.approx(np.mean(wanted), abs=1e-12)


def test_scores_of_numbers_as_scikit_learn():
    labels = RANDOM.normal(size=(211, 3)).astype(np.float32) * (1, 300, 0) + (7, 1e4, 2)
    values = labels + RANDOM.normal(size=(211, 3)) * (0.3, 20, 1)
    found = regression_scores(labels, values)
    for name, score in (('mae', 'mean_absolute_error'), ('rmse', 'root_mean_squared_error')):
        wanted = getattr(sklearn.metrics, score)(labels, values, multioutput='raw_values')
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9)
    wanted = sklearn.metrics.r2_score(labels[:, :2], values[:, :2], multioutput='raw_values')
    np.testing.assert_allclose(found['r2'][:2], wanted, rtol=1e-9)
    assert np.isnan(found['r2'][2])
    told = {'label': labels[:, :2], 'values': values[:, :2]}
    measured = Numbers(2, 'mse', (0.0, 0.0), (1.0, 1.0)).measure(told, ('age', 'height'))
    assert measured['height/r2'] == pytest.approx(wanted[1])
    assert measured['r2'] == pytest.approx(np.mean(wanted))
    one = Numbers(1, 'mse', (0.0,), (1.0,)).measure({k: v[:, :1] for k, v in told.items()}, 'a')
    assert set(one) == {'mae', 'rmse', 'r2'} and one['r2'] == pytest.approx(wanted[0])


@pytest.mark.parametrize('labels', ['classes', 'numbers'])
def test_evaluation(labels):
    """What is told of each image is that of the model, and rows that are not valid do not count in
    the loss."""
    values = np.float32([[3, 1, 0], [5, -1, 1000], [9, 0, 400]])
    task = make(labels, values)
    params = states.initial_params(task, 3)
    params['head']['classes']['kernel'] = RANDOM.normal(size=(16, 3)).astype(np.float32)
    given = batch(MARKS[:3] if labels == 'classes' else values)
    given['valid'] = np.float32([1, 0, 1])
    _, sums = task.loss(params, given, keys(3), progress=1.0, train=False)
    rows, metrics = sums.pop('rows'), task.summarize(sums)
    assert metrics['images'] == 2
    if labels == 'classes':
        wanted = functional.binary_cross_entropy_with_logits(
            torch.tensor(np.array(rows['logits'])[[0, 2]]), torch.tensor(MARKS[[0, 2]])
        ).item()
        sigmoids = torch.sigmoid(torch.tensor(np.array(rows['logits'])))
        np.testing.assert_allclose(rows['probabilities'], -np.sort(-sigmoids.numpy()), atol=1e-6)
    else:
        errors = (np.array(rows['values']) - values) / values.std(0)
        wanted = np.mean(errors[[0, 2]] ** 2)
    assert metrics['loss'] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_array_equal(rows['label'], given['label'])


def test_numbers_are_standardised_by_the_training_images():
    values = np.float32([[3, 1, 0], [5, -1, 1000], [9, 0, 400]])
    config = make('numbers', values).config
    np.testing.assert_allclose(config.target_mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(config.target_std, values.std(0), rtol=1e-6)
    given = make('numbers', values, target_std=(1.0, 2.0, 3.0)).config
    assert given.target_std == (1.0, 2.0, 3.0) and given.target_mean == config.target_mean
    for changed, message in (
        ({'target_std': (1.0,)}, r'config.target_std has 1 numbers, the images have 3 \(a, b, c\)'),
        ({'values': values * (1, 0, 1)}, r"^'b' is the same number in all training images"),
        ({'regression_loss': 'mae'}, r"'mae' is unknown. .*Allowed: mse, l1, huber"),
    ):
        with pytest.raises(RequestError, match=message):
            make('numbers', **{'values': values} | changed)


def test_numbers_of_another_run_keep_their_units():
    """A head goes on with other statistics: it gives the same numbers."""
    values = np.float32([[3, 1, 0], [5, -1, 1000], [9, 0, 400]])
    first, second = make('numbers', values), make('numbers', values * 2 + 1)
    params = states.initial_params(first, 3)
    params['head']['classes']['kernel'] = RANDOM.normal(size=(16, 3)).astype(np.float32)
    description = {'architecture': first.describe(), 'classes': NAMES}
    adapted, fresh, _ = second.adapt(params, description, NAMES, 'C')
    assert fresh == ()
    told = [
        np.array(
            task.loss(p, batch(values), keys(3), progress=1.0, train=False)[1]['rows']['values']
        )
        for task, p in ((first, params), (second, adapted))
    ]
    np.testing.assert_allclose(told[0], told[1], rtol=1e-4, atol=1e-3)
    assert not np.allclose(
        params['head']['classes']['kernel'], adapted['head']['classes']['kernel']
    )
    np.testing.assert_allclose(statistics(first.describe())[0], values.mean(0), rtol=1e-6)


def test_heads_of_other_problems():
    several, one = make('classes'), make('class')
    params = states.initial_params(several, 0)
    description = {'architecture': several.describe(), 'classes': NAMES}
    assert several.adapt(params, description, NAMES, 'C')[1] == ()
    for task in (one, make('numbers')):
        with pytest.raises(RequestError, match=r'is of multi_label_cl.* this run is of .*new_head'):
            task.adapt(params, description, NAMES, 'C')
        fresh = make_task(dataclasses.replace(task.config, new_head=True))
        assert fresh.adapt(params, description, NAMES, 'C')[1] == ('head/classes',)


def test_refusals():
    with pytest.raises(RequestError, match=r'num_classes is 5, but labels are of 3 \(config.data'):
        make('classes', num_classes=5)
    with pytest.raises(RequestError, match=r'a probe takes one class each: leave it class, or use'):
        data = {'name': 'folder', 'labels': 'classes', 'color_jitter': (0.0, 0.0, 0.0)}
        given = tiny.classify_settings(task='probe', data=data)
        task_config({n: v for n, v in given.items() if n in probe.Config.__dataclass_fields__})
