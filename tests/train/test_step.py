"""The training step on the smallest task: one linear layer."""

import functools
import itertools
from types import SimpleNamespace

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models.initializers import Constant, TruncatedNormal, parameter
from beit_jax.models.layers import linear
from beit_jax.settings.run import MeshConfig, OptimizerConfig
from beit_jax.tasks import Task
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train import step
from beit_jax.train.sharding import RULES, make_mesh, put_batch, state_shardings


class Line(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = linear(3, 5, TruncatedNormal(0.02, 0.02), dtype='float32', rngs=rngs)


class Regression(Task):
    """Least squares."""

    def __init__(self, ema_decay):
        self.config = SimpleNamespace(
            seed=0,
            batch_size=7,
            accumulate_steps=1,
            ema_decay=ema_decay,
            optimizer=OptimizerConfig(lr=0.1),
        )

    def build(self, rngs):
        return Line(rngs)

    def loss(self, params, batch, keys_B, *, progress, train):
        error = batch['x'] @ params['fc1']['kernel'] + params['fc1']['bias'] - batch['y']
        return (error**2).sum(), {'weight': 7.0, 'loss': (error**2).sum()}

    def summarize(self, sums):
        return {'loss': sums['loss'] / sums['weight']}


def states_of(task, count):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = optimizers.make_optimizer(
        task.config.optimizer, lambda _: 0.1, states.abstract_params(task)
    )
    state = states.initial_state(task, optimizer, mesh, states.initial_params(task, 0))
    train_step = step.make_train_step(task, optimizer, lambda _: 0.1, mesh, count)
    random, found = np.random.default_rng(0), [jax.device_get(state)]
    for _ in range(count):
        batch = {
            'x': random.normal(size=(7, 3)).astype(np.float32),
            'y': np.ones((7, 5), np.float32),
            'substituted': np.zeros(7, bool),
        }
        state, _ = train_step(state, put_batch(mesh, batch, 7))
        found.append(jax.device_get(state))
    return found


def test_moving_average():
    """After each step: decay times the average before, and the rest of the new parameters. It is
    what is evaluated and exported."""
    first, *others = states_of(Regression(0.4), 9)
    average = first['params']
    chex.assert_trees_all_equal(first['ema'], average)
    for number, state in enumerate(others):
        decay = min(0.4, (1 + number) / (10 + number))
        average = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new, average, state['params']
        )
        chex.assert_trees_all_close(state['ema'], average, rtol=1e-5, atol=1e-7)
        assert states.averaged_params(state) is state['ema']
    assert np.abs(average['fc1']['kernel'] - state['params']['fc1']['kernel']).max() > 1e-2


class Diverging(Regression):
    """The loss of some steps is not a number, that of others has a gradient that is not finite."""

    def loss(self, params, batch, keys_B, *, progress, train):
        loss, sums = super().loss(params, batch, keys_B, progress=progress, train=train)
        number = jnp.round(progress * 9).astype(int)  # of the step, from 0
        bad = jnp.where((number == 3) | (number == 4), jnp.nan, 0.0) + jnp.where(
            number == 6, jnp.inf, 0.0
        ) * jnp.sum(params['fc1']['kernel'])
        return loss + bad, sums | {'loss': loss + jnp.where(number == 6, 0.0, bad)}


def test_what_is_not_finite_changes_nothing():
    states = states_of(Diverging(0.4), 9)
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        skipped = number in (3, 4, 6)
        for name in ('params', 'ema'):
            changed = [
                np.any(a != b)
                for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]))
            ]
            assert all(changed) != skipped and any(changed) != skipped
        assert after['step'] == number + 1 and after['skipped_in_a_row'] == {3: 1, 4: 2, 6: 1}.get(
            number, 0
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert states[-1]['skipped_steps'] == 3
    counts = [leaf for leaf in jax.tree.leaves(states[-1]['optimizer']) if leaf.dtype.kind == 'i']
    assert counts and all(count == 9 for count in counts)  # the schedule goes on


class Measuring(Regression):
    """Has running statistics, beside what is learned: those of its last batch."""

    def __init__(self, accumulate_steps):
        super().__init__(0.4)
        self.config.batch_size, self.config.accumulate_steps = 8, accumulate_steps

    def build(self, rngs):
        line = Line(rngs)
        line.running_mean = parameter(Constant(5.0), (3,), rngs)
        return line

    def loss(self, params, batch, keys_B, *, progress, train):
        loss, sums = super().loss(params, batch, keys_B, progress=progress, train=train)
        return loss, sums | {
            'weight': jnp.float32(len(batch['x'])),
            'statistics': jnp.mean(batch['x'] ** 2, axis=0),
            'parts': 1.0,
        }

    def follow(self, params, sums):
        return {'running_mean': sums['statistics'] / sums['parts']}


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_running_statistics(parts):
    """They become those of the batch, or the mean of those of its parts; the moving average takes
    them in, the optimizer leaves them alone."""
    mesh, task = make_mesh(MeshConfig(), jax.devices()[:1]), Measuring(parts)
    rules = ((r'running_mean$', jax.sharding.PartitionSpec()), *RULES)
    with_rules = functools.partial(state_shardings, rules=rules)
    with pytest.MonkeyPatch.context() as patch:
        for module in (step, states):
            patch.setattr(module, 'state_shardings', with_rules)
        optimizer = optimizers.make_optimizer(
            task.config.optimizer, lambda _: 0.1, states.abstract_params(task)
        )
        state = states.initial_state(task, optimizer, mesh, states.initial_params(task, 0))
        x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
        batch = {'x': x, 'y': np.ones((8, 5), np.float32), 'substituted': np.zeros(8, bool)}
        before = jax.device_get(state)
        state, _ = step.make_train_step(task, optimizer, lambda _: 0.1, mesh, 9)(
            state, put_batch(mesh, batch, 8)
        )
    np.testing.assert_allclose(state['params']['running_mean'], np.mean(x**2, axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        state['ema']['running_mean'], 0.1 * 5 + 0.9 * np.mean(x**2, axis=0), rtol=1e-5
    )
    assert np.abs(state['params']['fc1']['kernel'] - before['params']['fc1']['kernel']).max() > 1e-2


def test_no_moving_average_unless_asked():
    last = states_of(Regression(0.0), 2)[-1]
    assert 'ema' not in last and states.averaged_params(last) is last['params']
    chex.assert_trees_all_equal(states_of(Regression(0.4), 2)[-1]['params'], last['params'])
