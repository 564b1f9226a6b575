"""Segmentation by a linear head: as torch's layers, what of it is learned, and refusals."""

from flax import nnx
import jax
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.models.architecture import abstract, in_words
from beit_jax.models.upernet import LinearHead, UperNetConfig
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train import loop
from beit_jax.train import state as states
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.pytorch.export import to_tensors
from beit_jax.weights.trees import leaves_by_path
from tests import tiny
from tests.train.test_resume import metrics_lines

CLASSES = tuple('abcdefg')
LINEAR = {'kind': 'linear', 'dropout': 0.0}


def settings(**changed):
    given = {'head': LINEAR, 'trained_blocks': 0, 'model': {'depth': 2}} | changed
    found = tiny.segment_settings(**given)
    found['head'] = given['head']
    return task_config(found)


def make(**changed):
    return make_task(settings(**changed).resolve(37, CLASSES))


@pytest.mark.parametrize('taps', [(1,), (0, 1, 1)])
def test_as_torch(taps):
    """Batch norm and a 1 x 1 convolution, in training with the new running statistics too."""
    random, width = np.random.default_rng(0), 16
    config = UperNetConfig(taps=taps, **LINEAR)
    head = LinearHead(config, width, 7, dtype='float32', rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(head)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), nnx.to_pure_dict(state)
    )
    params['norm']['running_var'] = np.abs(params['norm']['running_var'])
    given = [random.normal(size=(3, 5, 4, width)).astype(np.float32) * 7 for _ in taps]
    norm = torch.nn.BatchNorm2d(width * len(taps))
    layer = torch.nn.Conv2d(width * len(taps), 7, 1)
    names = {'weight': 'scale', 'bias': 'bias'}
    names |= {name: name for name in ('running_mean', 'running_var')}
    given_norm = {theirs: torch.tensor(params['norm'][ours]) for theirs, ours in names.items()}
    norm.load_state_dict(given_norm, strict=False)
    kernel = params['classifier']['kernel'].transpose(3, 2, 0, 1)
    state = {'weight': torch.tensor(kernel), 'bias': torch.tensor(params['classifier']['bias'])}
    layer.load_state_dict(state)
    x = torch.tensor(np.concatenate(given, -1).transpose(0, 3, 1, 2))
    for train in (False, True):
        norm.train(train)
        ours = nnx.merge(graphdef, params)
        found, auxiliary = ours(given, None, train)
        wanted = layer(norm(x)).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert auxiliary is None
    for name in ('running_mean', 'running_var'):
        np.testing.assert_allclose(getattr(ours.norm, name)[...], getattr(norm, name), rtol=1e-5)


def test_a_frozen_encoder():
    task = make()
    learned = states.learned(task, states.abstract_params(task))
    paths = {'classifier/kernel', 'classifier/bias'}
    paths |= {f'norm/{name}' for name in ('scale', 'bias', 'running_mean', 'running_var')}
    assert set(leaves_by_path(learned)) == {f'head/{path}' for path in paths}
    assert 'linear on blocks 1 (from 0)' in in_words(task.describe())[0]
    assert make(head=LINEAR | {'taps': (-1, 0)}).abstract is not None
    _, shapes = abstract(task.describe())
    found = jax.tree.map(lambda leaf: leaf.shape, shapes['head'])
    assert found == jax.tree.map(lambda leaf: leaf.shape, states.abstract_params(task)['head'])


def test_refusals():
    task = make()
    with pytest.raises(RequestError, match=r'has a linear head, which these libraries have not'):
        to_tensors(states.initial_params(task, 0), task.describe(), 'huggingface')
    with pytest.raises(RequestError, match=r"config.head.kind='linar' is unknown. Did you mean"):
        make(head=LINEAR | {'kind': 'linar'})
    with pytest.raises(RequestError, match=r'config.head.taps is \(2,\): the encoder has blocks 0'):
        make(head=LINEAR | {'taps': (2,)})
    description = {'architecture': task.describe(), 'classes': list(CLASSES)}
    with pytest.raises(RequestError, match=r'C has kind linear, config.head.kind is upernet: set'):
        other = make(head={'auxiliary_channels': 8, 'channels': 8, 'taps': (1, 1, 1, 1)})
        other.adapt(states.initial_params(task, 0), description, CLASSES, 'C')


@pytest.mark.usefixtures('one_device')
def test_a_run(tmp_path):
    """It learns, on whole pictures, and its encoder stays to the bit."""
    config = settings(total_steps=3, evaluate_every=3, pictures=0, distort=False)
    assert loop.train(config, tmp_path) == 0
    found, _ = load_params(str(tmp_path))
    fresh = states.initial_params(make(), config.seed)
    jax.tree.map(np.testing.assert_array_equal, found['encoder'], fresh['encoder'])
    assert np.any(found['head']['classifier']['kernel'])
    assert 'eval/miou' in metrics_lines(tmp_path)[-1]
