"""Segmentation: the loss, what a checkpoint becomes, running statistics, and refusals."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.images.distortion import distort_views
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train import state as states
from beit_jax.weights.positions import resize_bias_table
from beit_jax.weights.trees import leaves_by_path
from tests import tiny

CLASSES = tuple('abcdefg')


def make(classes=CLASSES, **changed):
    """A task of 7 classes and crops of 5 x 5 patches."""
    return make_task(task_config(tiny.segment_settings(**changed)).resolve(37, classes))


def describe(task, classes=CLASSES):
    return {'architecture': task.describe(), 'classes': list(classes)}


@pytest.fixture(scope='module')
def batch():
    """Six pictures, the last of which does not count, with ignored pixels."""
    random = np.random.default_rng(0)
    label_map = random.choice([*range(7), 255], (6, 20, 20)).astype(np.uint8)
    return {
        'image': random.integers(0, 256, (6, 20, 20, 3), np.uint8),
        'label_map': label_map,
        'view': np.arange(6, dtype=np.uint32),
        'label': np.zeros(6, np.int32),
        'valid': np.array([1, 1, 1, 1, 1, 0], np.float32),
    }


@pytest.fixture(scope='module')
def task():
    return make()


def varied(task):
    """Parameters of all values, none of them those of the start."""
    random = np.random.default_rng(0)

    def vary(path, leaf):
        noise = 0.2 * random.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ('scale', 'scale1', 'scale2'):
            return 1 + noise
        return 0.5 + abs(noise) if path[-1].key == 'running_var' else noise

    return jax.tree_util.tree_map_with_path(vary, states.abstract_params(task))


def test_loss_as_torch(task, batch):
    """The mean over the pixels that count, of the cross-entropy of enlarged logits and 0.4 times
    that of the auxiliary head."""
    data, every = task.config.data, make(avg_non_ignore=False)

    @jax.jit
    def run(params, batch):
        images = (batch['image'].astype(jnp.float32) / 255 - jnp.array(data.mean)) / jnp.array(
            data.std
        )
        losses = [one.loss(params, batch, None, progress=0.0, train=False) for one in (task, every)]
        return *losses, nnx.merge(task.graphdef, params)(images)[:2]

    (loss, sums), (_, sums_of_every), outputs = run(varied(task), batch)
    labels, losses, right = torch.tensor(batch['label_map'][:5].astype(np.int64)), [], None
    for logits in outputs:
        large = torch.nn.functional.interpolate(
            torch.tensor(np.moveaxis(np.asarray(logits), -1, 1)[:5]), size=(20, 20), mode='bilinear'
        )
        losses.append(torch.nn.functional.cross_entropy(large, labels, ignore_index=255).item())
        right = (large.argmax(1) == labels).float().sum().item() if right is None else right
    count = (batch['label_map'][:5] != 255).sum()
    metrics = task.summarize(sums)
    assert sums['weight'] == count and 'statistics' not in sums
    assert metrics['loss'] == pytest.approx(losses[0] + 0.4 * losses[1], rel=1e-5)
    assert metrics['auxiliary_loss'] == pytest.approx(losses[1], rel=1e-5)
    assert (
        metrics['pixel_accuracy'] == pytest.approx(right / count, abs=1e-6) and loss == sums['loss']
    )
    # mmsegmentation 0.11: F.cross_entropy(reduction='none', ignore_index=255).mean()
    losses = []
    for logits in outputs:
        large = torch.nn.functional.interpolate(
            torch.tensor(np.moveaxis(np.asarray(logits), -1, 1)[:5]), size=(20, 20), mode='bilinear'
        )
        each = torch.nn.functional.cross_entropy(large, labels, reduction='none', ignore_index=255)
        losses.append(each.mean().item())
    metrics = every.summarize(sums_of_every)
    assert metrics['loss'] == pytest.approx(losses[0] + 0.4 * losses[1], rel=1e-5)
    assert metrics['auxiliary_loss'] == pytest.approx(losses[1], rel=1e-5)
    assert metrics['pixel_accuracy'] == pytest.approx(right / count, abs=1e-6)


@pytest.mark.slow  # its compilation
def test_gradients(task, batch):
    """They reach every parameter that is learned and no running statistic; pixels that are ignored
    have no part in them."""
    params, keys = varied(task), jax.random.split(jax.random.key(0), 6)
    random = np.random.default_rng(1)
    ignored = (batch['label_map'] == 255) | (batch['valid'] == 0)[:, None, None]

    @jax.jit
    def gradients_of(label_map):
        part = task.augment(batch | {'label_map': label_map}, jax.random.key(1), keys)
        return jax.grad(lambda params: task.loss(params, part, keys, progress=0.0, train=True)[0])(
            params
        )

    gradients = gradients_of(batch['label_map'])
    for path, leaf in leaves_by_path(gradients).items():
        dead = path.endswith(('running_mean', 'running_var'))
        assert bool(np.any(leaf)) != dead, path
    other = np.where(
        (batch['valid'] == 0)[:, None, None],
        random.integers(0, 7, ignored.shape),
        batch['label_map'],
    ).astype(np.uint8)
    assert np.any(other != batch['label_map'])
    jax.tree.map(np.testing.assert_array_equal, gradients, gradients_of(other))


def test_augmented_batch(task, batch):
    """Colours are changed, as the view decides; the classes are not."""
    keys = jax.random.split(jax.random.key(0), 6)
    part = jax.jit(task.augment)(batch, jax.random.key(1), keys)
    data = task.config.data
    distorted = jax.jit(distort_views, static_argnums=0)(
        task.config.seed, batch['view'], batch['image'] / np.float32(255)
    )
    np.testing.assert_allclose(
        part['image'], (distorted - np.float32(data.mean)) / np.float32(data.std), atol=1e-5
    )
    np.testing.assert_array_equal(part['label_map'], batch['label_map'])
    plain = make(distort=False).augment(batch, jax.random.key(1), keys)['image']
    np.testing.assert_allclose(
        plain,
        (batch['image'] / np.float32(255) - np.float32(data.mean)) / np.float32(data.std),
        atol=1e-5,
    )


def test_a_pretrained_encoder_is_adapted(tokenizer_dir):
    """From pre-training with a shared bias table, at another resolution; and from a classifier."""
    other = make_task(
        task_config(
            tiny.settings(
                tokenizer_dir, model={'positions': 'shared_bias', 'layer_scale': 0.1, 'depth': 1}
            )
        )
    )
    theirs = varied(other)
    task = make(data={'image_size': 28})
    params, prefixes, notes = task.adapt(
        theirs, {'architecture': other.describe(), 'classes': []}, CLASSES, 'C'
    )
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
    assert 'shared' in notes[0] and '5 x 5 patches are interpolated to 7 x 7' in notes[1]
    whole = states.merge(params, states.initial_params(task, 0, below=prefixes))
    jax.tree.map(
        lambda a, b: None if a.shape == b.shape else pytest.fail(),
        whole,
        states.abstract_params(task),
    )

    classifier = make_task(
        task_config(tiny.classify_settings(model={'depth': 1})).resolve(37, CLASSES)
    )
    params, prefixes, _ = make().adapt(
        varied(classifier),
        {'architecture': classifier.describe(), 'classes': list(CLASSES)},
        CLASSES,
        'C',
    )
    assert prefixes == ('head',) and set(params) == {'encoder'}


def test_a_segmenter_is_adapted(task):
    """Its heads are kept where the classes are the same, at any resolution."""
    theirs = varied(task)
    params, prefixes, notes = make(data={'image_size': 24}).adapt(
        theirs, describe(task), CLASSES, 'C'
    )
    assert not prefixes and len(notes) == 1
    jax.tree.map(np.testing.assert_array_equal, params['head'], theirs['head'])
    assert make().adapt(theirs, describe(task), CLASSES, 'C')[2] == []
    others = (*CLASSES[:6], 'x')
    with pytest.raises(
        RequestError,
        match=r'the heads of C are for 7 classes \(a, b, c, ...\); this run has 7 .*same_classes',
    ):
        make(others).adapt(theirs, describe(task), others, 'C')
    params, prefixes, _ = make(others, same_classes=True).adapt(theirs, describe(task), others, 'C')
    assert not prefixes and 'head' in params
    params, prefixes, notes = make(CLASSES[:4], new_head=True).adapt(
        theirs, describe(task), CLASSES[:4], 'C'
    )
    assert (
        prefixes == ('head',)
        and set(params) == {'encoder'}
        and 'replaced by fresh ones for 4' in notes[-1]
    )
    with pytest.raises(
        RequestError, match=r'C has taps \(0, 0, 0, 0\), config.head.taps is \(-1, 0, 0, 0\)'
    ):
        make(head={'taps': (-1, 0, 0, 0)}).adapt(theirs, describe(task), CLASSES, 'C')


def test_a_classifier_takes_its_encoder(task):
    classifier = make_task(
        task_config(tiny.classify_settings(model={'depth': 1})).resolve(37, CLASSES)
    )
    params, prefixes, _ = classifier.adapt(varied(task), describe(task), CLASSES, 'C')
    assert prefixes == ('head',) and set(params) == {'encoder'}


def test_no_auxiliary_head(batch):
    task = make(head={'auxiliary_channels': 0})
    assert not [
        path for path in leaves_by_path(states.abstract_params(task)) if 'auxiliary' in path
    ]
    loss, _ = jax.eval_shape(
        lambda *inputs: task.loss(*inputs, None, progress=0.0, train=False),
        states.abstract_params(task),
        batch,
    )
    assert loss.shape == ()


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'data': {'image_size': 3}}, 'an image of 3 x 3 cannot be cut into patches of 4'),
        ({'data': {'image_size': 22}}, 'an image of 22 x 22 cannot be cut into patches of 4'),
        ({'data': {'image_size': 4}}, '1 x 1 patches are too few for a pyramid'),
        (
            {'inference': {'stride': 21}},
            'config.inference.stride 21 is larger than the windows of 20',
        ),
        ({'num_classes': 256}, 'label maps hold 255 classes at most'),
        ({'auxiliary_weight': -1.0}, 'config.auxiliary_weight is -1.0: it takes'),
        ({'head': {'taps': (0, 0, 0, 1)}}, 'the encoder has blocks 0 to 0'),
        ({'optimizer': {'schedule': 'line'}}, 'Did you mean linear'),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(RequestError, match=message):
        make(**changed)


def test_class_counts():
    config = task_config(tiny.segment_settings())
    assert (
        config.resolve(10, CLASSES).num_classes == 7
        and dataclasses.replace(config, num_classes=9).resolve(10, CLASSES).num_classes == 9
    )
    with pytest.raises(RequestError, match=r'but config.num_classes is 2'):
        dataclasses.replace(config, num_classes=2).resolve(10, CLASSES)
