"""Fine-tuning with a frozen part: it stays to the bit, costs no gradient and no optimizer, and what
is learned learns as if all were."""

import dataclasses

import chex
from flax import traverse_util
import jax
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tasks.segment import Config as SegmentConfig
from beit_jax.train import flops, jaxprs, loop, sharding, step
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.weights.checkpoint import load_params
from tests import tiny
from tests.train.test_resume import assert_same_run, metrics_lines

pytestmark = pytest.mark.usefixtures('one_device')
DEPTH = 3
CLASSES = ('a', 'b', 'c')
OPTIMIZER = {'layer_decay': 0.7, 'weight_decay': 0.5, 'lr': 0.1, 'clip_norm': 0.0, 'eps': 1e-3}


def make(trained_blocks, unroll=DEPTH, **changed):
    model = {'depth': DEPTH, 'unroll': unroll, 'layer_scale': 0.1, 'drop_path': 0.0}
    model |= changed.pop('model', {})
    optimizer = OPTIMIZER | changed.pop('optimizer', {})
    given = {'trained_blocks': trained_blocks, 'model': model, 'optimizer': optimizer} | changed
    given['data'] = {'color_jitter': (0.0, 0.0, 0.0)}  # whose greys are products, too
    return make_task(task_config(tiny.classify_settings(**given)).resolve(37, CLASSES))


def batch(count=8):
    rows = np.arange(count, dtype=np.uint32)
    return {
        'image': np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3), np.uint8),
        'label': np.arange(count, dtype=np.int32) % 3,
        'valid': np.ones(count, np.float32),
        'substituted': np.zeros(count, bool),
        'view': rows,
        'grey': np.full(count, 0.4, np.float32),
    }


def set_up(task):
    """(state, jitted step)."""
    mesh = sharding.make_mesh(task.config.mesh, jax.devices()[:1])
    params = states.learned(task, states.abstract_params(task))
    optimizer = optimizers.make_optimizer(task.config.optimizer, lambda _: 0.1, params)
    state = states.initial_state(task, optimizer, mesh, states.initial_params(task, 0))
    return state, step.make_train_step(task, optimizer, lambda _: 0.1, mesh, 5)


def after(task, count):
    """(state, the one after some steps), on the host."""
    state, train_step = set_up(task)
    before = jax.device_get(state)
    for _ in range(count):
        state, metrics = train_step(state, batch())
    assert metrics['skipped_steps'] == 0
    return before, jax.device_get(state)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize(
    'trained_blocks, unroll, layer_decay', [(0, 1, 0.7), (2, 1, 0.7), (1, DEPTH, 1.0), (3, 2, 0.7)]
)
def test_what_is_frozen_stays_to_the_bit(trained_blocks, unroll, layer_decay):
    """Parameters and their moving average, by weight decay too; the optimizer knows the others
    alone, all of which change."""
    task = make(
        trained_blocks,
        unroll,
        ema_decay=0.9,
        model={'drop_path': 0.3},
        optimizer={'layer_decay': layer_decay},
    )
    before, found = after(task, 3)
    names = [f'encoder/blocks/{i:02d}/' for i in range(DEPTH - trained_blocks, DEPTH)] + ['head/']
    learned = {path for path in flat(found['params']) if path.startswith(tuple(names))}
    for part in ('params', 'ema'):
        for path, array in flat(found[part]).items():
            changed = array.tobytes() != flat(before[part])[path].tobytes()
            assert changed == (path in learned), path
    size = sum(flat(found['params'])[path].size for path in learned)
    kept = sum(leaf.size for leaf in jax.tree.leaves(found['optimizer']) if np.ndim(leaf))
    assert kept == 2 * size and len(learned) < len(flat(found['params']))


def test_what_is_learned_learns_as_if_all_were():
    """Gradients, decay and rates of what is learned are those of a run that learns all."""
    _, whole = after(make(-1), 1)
    for trained_blocks, unroll in ((1, DEPTH), (2, 1)):
        before, found = after(make(trained_blocks, unroll), 1)
        task = make(trained_blocks)
        for path, array in flat(found['params']).items():
            if task.learns(path):
                np.testing.assert_allclose(array, flat(whole['params'])[path], atol=2e-6)
                assert np.any(array != flat(before['params'])[path])


@pytest.mark.parametrize('unroll', [1, DEPTH])
def test_no_gradient_goes_through_what_is_frozen(unroll):
    """The products of the step's program are those that utilisation is measured by: forward, and
    twice as much backward where something is learned."""
    counts = {}
    for trained_blocks in (-1, 2, 0):
        task = make(trained_blocks, unroll)
        state, train_step = set_up(task)
        counts[trained_blocks] = jaxprs.product_flops(train_step, state, batch())
        told = flops.of_step(task, state['params'], batch())
        # pixels need no gradient
        embedding = 2 * 8 * 25 * (3 * 4 * 4) * 16
        assert told == counts[trained_blocks] + embedding * (trained_blocks < 0)
    assert counts[0] < 0.36 * counts[-1] < counts[2] < 0.8 * counts[-1]


def test_frozen_blocks_have_no_stochastic_depth():
    """A frozen encoder gives the same whatever is drawn."""
    task = make(0, 1, model={'drop_path': 0.9}, erase=0.0, mix={'mixup': 0.0, 'cutmix': 0.0})
    params = states.initial_params(task, 0)
    images = task.augment(batch(), jax.random.key(0), jax.random.split(jax.random.key(0), 8))
    found = []
    for seed in (1, 2):
        keys = jax.random.split(jax.random.key(seed), 8)
        loss, _ = task.loss(params, images, keys, progress=0.0, train=True)
        found.append(float(loss))
    assert found[0] == found[1]


def test_a_run(tmp_path, monkeypatch):
    """It starts from a checkpoint, whose encoder it still has at its end, to the bit, and resumes
    so; what is frozen is told."""
    model = {'positions': 'layer_bias', 'layer_scale': 0.1, 'depth': 2}
    params = tiny.save_checkpoint(
        tmp_path / 'pretrain',
        make_task(task_config(tiny.settings('', target='pixels', model=model))),
    )
    settings = tiny.classify_settings(
        init=str(tmp_path / 'pretrain'),
        model=model,
        trained_blocks=0,
        total_steps=3,
        save_every=1,
        ema_decay=0.9,
        data={'num_evaluate_examples': 0},
    )
    for name in ('whole', 'stopped'):
        if name == 'stopped':
            asked = lambda self, number: number == 1
            monkeypatch.setattr('beit_jax.train.processes.distributed.Stop.asked', asked)
            assert loop.train(task_config(settings), tmp_path / name) == loop.STOPPED
            monkeypatch.undo()
        assert loop.train(task_config(settings), tmp_path / name) == 0
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
    found, _ = load_params(str(tmp_path / 'whole'))
    del params['encoder']['mask_token']
    chex.assert_trees_all_equal(found['encoder'], params['encoder'])
    lines = (tmp_path / 'whole' / 'parameters.txt').read_text().splitlines()
    assert all(('frozen' in line) == line.startswith('encoder') for line in lines)
    assert len(metrics_lines(tmp_path / 'whole')) == 3


def test_refusals():
    with pytest.raises(RequestError, match=r'trained_blocks is 4, the encoder has 3: lower it, or'):
        make(4)
    assert 'has random weights: give config.init' in make(0).notes[0] and not make(-1).notes
    assert 'trained_blocks' in {field.name for field in dataclasses.fields(SegmentConfig)}
