"""Linear probes on every layer at once, and k-NN, against scikit-learn."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax.errors import RequestError
from beit_jax.models.heads import KINDS
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tasks.neighbours import NeighboursConfig, nearest_neighbours
from beit_jax.tasks.probe import collect
from beit_jax.train import loop
from beit_jax.train import state as states
from tests import tiny

CLASSES = ('a', 'b', 'c')


def config(**changed):
    settings = {
        name: value
        for name, value in tiny.settings('', task='probe', **changed).items()
        if name not in ('tokenizer', 'mask')
    }
    return task_config(settings)


@pytest.fixture(scope='module')
def task():
    return make_task(config(model={'depth': 3}).resolve(37, CLASSES))


@pytest.fixture(scope='module')
def features():
    random = np.random.default_rng(0)
    return {
        'cls': random.normal(size=(11, 3, 16)).astype(np.float32),
        'mean': random.normal(size=(11, 3, 16)).astype(np.float32),
        'label': random.integers(0, 3, 11),
        'valid': np.array([1.0] * 9 + [0.0] * 2, np.float32),
    }


def test_heads_learn_as_if_each_were_alone(task, features):
    """The gradient of one head is that of its own cross-entropy, and its accuracy is counted over
    valid rows."""
    params = states.initial_params(task, 0)
    (_, sums), gradients = jax.value_and_grad(
        lambda p: task.loss(p, features, None, progress=0.0, train=True), has_aux=True
    )(params)
    metrics = task.summarize(sums)
    for kind in KINDS:
        for layer in range(3):
            inputs = np.concatenate(
                [
                    features[name][:, layer]
                    for name in (('cls', 'mean') if kind == 'both' else (kind,))
                ],
                axis=-1,
            )

            def alone(kernel, bias):
                losses = optax.softmax_cross_entropy_with_integer_labels(
                    inputs @ kernel + bias, features['label']
                )
                return jnp.sum(losses * features['valid'])

            weights = params[kind]['kernel'][layer], params[kind]['bias'][layer]
            for ours, wanted in zip(
                (gradients[kind]['kernel'][layer], gradients[kind]['bias'][layer]),
                jax.grad(alone, (0, 1))(*weights),
            ):
                np.testing.assert_allclose(ours, wanted, atol=1e-5)
            correct = np.argmax(inputs @ weights[0] + weights[1], -1) == features['label']
            assert metrics[f'layer_{layer + 1:02d}/{kind}'] == pytest.approx(correct[:9].mean())
    assert metrics['accuracy'] == max(
        value for name, value in metrics.items() if name.startswith('layer')
    )


def test_features_of_every_layer(task):
    """Those of the encoder's blocks, standardised by what calibration found."""
    random = np.random.default_rng(0)
    batch = {
        'image': random.integers(0, 256, (5, 20, 20, 3), np.uint8),
        'view': np.arange(5, dtype=np.uint32),
        'grey': np.full(5, 0.4, np.float32),
    }
    raw = task.prepare(task.frozen, batch, train=False)
    data = task.config.data
    images = (batch['image'] / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)
    x = nnx.merge(task.encoder, task.frozen['encoder'])(
        jnp.asarray(images), every_layer=lambda x_BND: x_BND
    )
    np.testing.assert_allclose(
        raw['mean'], np.asarray(x)[:, :, 1:].mean(2).swapaxes(0, 1), atol=1e-5
    )
    np.testing.assert_allclose(raw['cls'], np.asarray(x)[:, :, 0].swapaxes(0, 1), atol=1e-5)
    host = jax.device_get(raw) | {'label': np.zeros(5, np.int32), 'valid': np.ones(5, np.float32)}
    frozen = task.calibrate(task.frozen, lambda split, limit: iter([host]))
    standard = task.prepare(frozen, batch, train=False)
    for name in ('cls', 'mean'):
        np.testing.assert_allclose(np.mean(standard[name], axis=0), 0, atol=1e-4)
        deviation = np.asarray(raw[name]).std(0)
        np.testing.assert_allclose(
            np.std(standard[name], axis=0), deviation / (deviation + 1e-6), atol=1e-2
        )


def test_nearest_neighbours_against_sklearn():
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 301)
    bank = (random.normal(size=(5, 13))[labels] + random.normal(size=(301, 13))).astype(np.float32)
    queries = (
        random.normal(size=(5, 13))[random.integers(0, 5, 97)] + random.normal(size=(97, 13))
    ).astype(np.float32)
    theirs = (
        KNeighborsClassifier(
            11, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        .fit(bank, labels)
        .predict(queries)
    )
    ours = nearest_neighbours(bank, labels, queries, 5, NeighboursConfig(count=11), chunk=40)
    np.testing.assert_array_equal(ours, theirs)


def test_collect():
    """Rows that do not count are left out."""
    random = np.random.default_rng(0)
    batches = [
        {
            'cls': random.normal(size=(4, 2, 3)),
            'mean': random.normal(size=(4, 2, 3)),
            'label': np.arange(4) + 4 * i,
            'valid': np.array([1, 0, 1, 1 - i]),
        }
        for i in range(2)
    ]
    found = collect(iter(batches), 10, np.float32)
    assert found['label'].tolist() == [0, 2, 3, 4, 6]
    np.testing.assert_allclose(found['mean'][3], batches[1]['mean'][0], rtol=1e-6)
    assert len(collect(iter(batches), 4)['cls']) == 4


def test_a_run(tmp_path, capfd, tokenizer_dir):
    """From a pre-trained checkpoint to a table of all layers; another encoder is not taken for the
    same run."""
    tiny.save_checkpoint(
        tmp_path / 'pretrain',
        make_task(task_config(tiny.settings(tokenizer_dir, model={'positions': 'shared_bias'}))),
    )
    settings = config(
        encoder=str(tmp_path / 'pretrain'),
        model={'positions': 'shared_bias'},
        neighbours={'count': 3, 'images': 20},
    )
    assert loop.train(settings, tmp_path / 'probe') == 0
    table = json.loads((tmp_path / 'probe' / 'probe.json').read_text())
    assert set(table) == {'linear cls', 'linear mean', 'linear both', 'k-NN cls', 'k-NN mean'}
    last = [
        json.loads(line) for line in (tmp_path / 'probe' / 'metrics.jsonl').read_text().splitlines()
    ][-1]
    for kind in KINDS:
        np.testing.assert_allclose(
            table[f'linear {kind}'],
            [last[f'eval/layer_{layer}/{kind}'] for layer in ('01', '02')],
            atol=1e-6,
        )
    assert 'best linear' in capfd.readouterr().out
    with pytest.raises(RequestError, match='another config'):
        loop.train(
            config(model={'positions': 'shared_bias'}, neighbours={'count': 3, 'images': 20}),
            tmp_path / 'probe',
        )
    with pytest.raises(RequestError, match='needs held-out images'):
        loop.train(config(data={'num_evaluate_examples': 0}), tmp_path / 'other')
    with pytest.raises(RequestError, match='a frozen encoder must see what it was trained on'):
        loop.train(
            config(encoder=str(tmp_path / 'pretrain'), data={'mean': (0.1, 0.1, 0.1)}),
            tmp_path / 'other',
        )
    with pytest.raises(RequestError, match='is of another model'):
        loop.train(
            config(encoder=str(tmp_path / 'pretrain'), model={'width': 32}), tmp_path / 'other'
        )


def test_bad_settings():
    with pytest.raises(RequestError, match=r'config\.encoder'):
        config(init='somewhere')
    with pytest.raises(RequestError, match='one folder a class'):
        config().resolve(10, ())
