"""Fine-tuning: the model, what a checkpoint becomes, the batch, and refusals."""

import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train import state as states
from beit_jax.weights.positions import resize_bias_table
from tests import tiny

CLASSES = ('a', 'b', 'c')


def make(classes=CLASSES, **changed):
    """A task of 3 classes and pictures of 5 x 5 patches."""
    return make_task(task_config(tiny.classify_settings(**changed)).resolve(37, classes))


def fresh(task, seed=0):
    return states.initial_params(task, seed)


def describe(task, classes=CLASSES):
    return {'architecture': task.describe(), 'classes': list(classes)}


@pytest.fixture(scope='module')
def batch():
    random = np.random.default_rng(0)
    return {
        'image': random.integers(0, 256, (6, 20, 20, 3), np.uint8),
        'label': np.array([0, 2, 1, 1, 0, 2], np.int32),
        'view': np.arange(6, dtype=np.uint32),
        'grey': np.full(6, 0.4, np.float32),
        'valid': np.ones(6, np.float32),
    }


@pytest.fixture(scope='module')
def pretrained(tokenizer_dir):
    """(task, parameters, description) of a pre-training run with a shared bias table that is not
    zero."""
    task = make_task(
        task_config(
            tiny.settings(tokenizer_dir, model={'positions': 'shared_bias', 'layer_scale': 0.1})
        )
    )
    params = fresh(task)
    table = params['encoder']['position_bias']['table']
    params['encoder']['position_bias']['table'] = (
        np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    )
    return task, params, {'architecture': task.describe(), 'classes': []}


def test_a_pretrained_encoder_is_adapted(pretrained):
    _, theirs, description = pretrained
    task = make(
        model={'positions': 'layer_bias', 'layer_scale': 0.1},
        data={'image_size': 28, 'mean': (0.4, 0.4, 0.4)},
    )
    params, prefixes, notes = task.adapt(theirs, description, CLASSES, 'C')
    assert (
        prefixes == ('head',)
        and set(params) == {'encoder'}
        and 'mask_token' not in params['encoder']
    )
    shared = theirs['encoder']['position_bias']['table']
    for block in params['encoder']['blocks'].values():
        np.testing.assert_array_equal(
            block['attention']['position_bias']['table'], resize_bias_table(shared, (5, 5), (7, 7))
        )
    np.testing.assert_array_equal(
        params['encoder']['patch_embedding']['kernel'],
        theirs['encoder']['patch_embedding']['kernel'],
    )
    assert (
        'shared' in notes[0]
        and '5 x 5 patches are interpolated to 7 x 7' in notes[1]
        and 'mean' in notes[2]
    )
    whole = states.merge(params, states.initial_params(task, 0, below=prefixes))
    jax.tree.map(
        lambda a, b: None if a.shape == b.shape else pytest.fail(),
        whole,
        states.abstract_params(task),
    )
    # the official fine-tuning does not copy the last norm of pre-training
    np.testing.assert_array_equal(whole['head']['norm']['scale'], 1)


def test_initial_head_is_small():
    kernel = np.asarray(
        fresh(make(model={'width': 64}, num_classes=500))['head']['classes']['kernel']
    )
    assert (
        kernel.std() == pytest.approx(0.02 * 0.001, rel=0.02)
        and not fresh(make())['head']['classes']['bias'].any()
    )
    assert (
        np.asarray(
            fresh(make(head_scale=1.0, model={'width': 64}, num_classes=500))['head']['classes'][
                'kernel'
            ]
        ).max()
        > 0.05
    )


def test_patches_start_as_torch_does():
    import torch

    params = fresh(make(model={'width': 512}))['encoder']['patch_embedding']
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(3, 512, 4, 4)
    for name, tensor in (('kernel', theirs.weight), ('bias', theirs.bias)):
        ours, wanted = np.asarray(params[name]), tensor.detach().numpy()
        assert ours.std() == pytest.approx(wanted.std(), rel=0.1) and np.abs(
            ours
        ).max() == pytest.approx(np.abs(wanted).max(), rel=0.02)


def test_what_is_no_encoder_is_refused():
    task = make()
    for changed, message in (
        ({'model': {'heads': 4}}, r'C has heads 2, config.model.heads is 4'),
        ({'pooling': 'cls'}, "reads 'mean'"),
        (
            {'model': {'norm_eps': 1e-12}},
            r'C has norm_eps 1e-06, config.model.norm_eps is 1e-12: set it so',
        ),
    ):
        with pytest.raises(RequestError, match=message):
            make(**changed).adapt(fresh(task), describe(task), CLASSES, 'C')
    with pytest.raises(
        RequestError, match='C is a dvae: give a checkpoint of pre-training or of fine-tuning'
    ):
        make().adapt({}, {'architecture': {'architecture': 'dvae'}}, CLASSES, 'C')


def test_augmented_batch(batch):
    """Targets sum to one, a mixed row is its own and its neighbour's, and the same key gives the
    same batch."""
    task = make(data={'color_jitter': (0.3, 0.3, 0.3)})
    keys = jax.random.split(jax.random.key(0), 6)
    first, again, other = (
        jax.device_get(task.augment(batch, jax.random.key(seed), keys)) for seed in (7, 7, 8)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first['image'] != other['image'])
    np.testing.assert_allclose(first['target'].sum(-1), 1, atol=1e-6)
    smooth = lambda label: np.where(np.arange(3) == label, 0.9 + 0.1 / 3, 0.1 / 3)
    shares = []
    for i in range(6):
        own, partner = smooth(batch['label'][i]), smooth(batch['label'][i ^ 1])
        if np.any(own != partner):
            share = np.linalg.lstsq(
                (own - partner)[:, None], first['target'][i] - partner, rcond=None
            )[0][0]
            np.testing.assert_allclose(
                first['target'][i], share * own + (1 - share) * partner, atol=1e-6
            )
            shares.append(share)
    np.testing.assert_allclose(shares, shares[0], atol=1e-5)


def test_nothing_to_augment(batch):
    task = make(
        erase=0.0,
        mix={'mixup': 0.0, 'cutmix': 0.0},
        label_smoothing=0.0,
        data={'color_jitter': (0.0, 0.0, 0.0)},
    )
    made = jax.device_get(
        task.augment(batch, jax.random.key(0), jax.random.split(jax.random.key(0), 6))
    )
    data = task.config.data
    np.testing.assert_allclose(
        made['image'], (batch['image'] / 255 - data.mean) / data.std, atol=1e-5
    )
    np.testing.assert_array_equal(made['target'], np.eye(3)[batch['label']])


def test_evaluation_metrics_against_sklearn(batch):
    """Top-1, top-k and loss of valid rows, and what is told of each image."""
    from sklearn.metrics import log_loss, top_k_accuracy_score

    task = make(tuple('abcdefg'))
    params = fresh(task, 3)
    params['head']['classes']['kernel'] = (
        np.random.default_rng(0).normal(size=(16, 7)).astype(np.float32)
    )
    batch = batch | {
        'valid': np.array([1, 1, 1, 0, 1, 1], np.float32),
        'label': np.array([0, 6, 1, 1, 5, 2], np.int32),
    }
    keys = jax.random.split(jax.random.key(0), 6)
    _, sums = task.loss(params, batch, keys, progress=1.0, train=False)
    rows = sums.pop('rows')
    metrics = task.summarize(sums)
    images = (batch['image'] / np.float32(255) - np.float32(task.config.data.mean)) / np.float32(
        task.config.data.std
    )
    logits = nnx.merge(task.graphdef, params)(images)
    kept = batch['valid'] > 0
    probabilities = np.asarray(jax.nn.softmax(logits))[kept].astype(np.float64)
    labels = batch['label'][kept]
    probabilities /= probabilities.sum(-1, keepdims=True)
    assert metrics['loss'] == pytest.approx(
        log_loss(labels, probabilities, labels=range(7)), abs=1e-5
    )
    for name, k in (('accuracy', 1), ('top5_accuracy', 5)):
        assert metrics[name] == pytest.approx(
            top_k_accuracy_score(labels, probabilities, k=k, labels=range(7))
        )
    assert metrics['images'] == 5
    np.testing.assert_array_equal(rows['classes'][kept], np.argsort(-probabilities)[:, :5])
    np.testing.assert_allclose(
        rows['probabilities'][kept], -np.sort(-probabilities)[:, :5], atol=1e-6
    )


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'batch_size': 7}, 'config.batch_size is 7: make it even'),
        ({'pooling': 'max'}, 'mean, cls'),
        ({'label_smoothing': 1.0}, 'label_smoothing'),
        ({'erase': 1.5}, 'config.erase'),
        ({'mix': {'mixup': -1.0}}, 'config.mix.mixup is -1.0: it takes'),
        ({'rand_augment': 'rand-m9'}, 'rand-m9-mstd0.5-inc1'),
        ({'data': {'image_size': 21}}, 'cannot be cut into patches'),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(RequestError, match=message):
        task_config(tiny.classify_settings(**changed))


def test_class_counts():
    config = task_config(tiny.classify_settings())
    assert config.resolve(10, CLASSES).num_classes == 3
    assert dataclasses.replace(config, num_classes=5).resolve(10, CLASSES).num_classes == 5
    with pytest.raises(RequestError, match='have 0 classes: sort them into one folder a class'):
        config.resolve(10, ())
    with pytest.raises(
        RequestError, match=r'have 3 classes, so labels up to 2, but config.num_classes is 2'
    ):
        dataclasses.replace(config, num_classes=2).resolve(10, CLASSES)
