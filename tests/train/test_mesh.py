"""The same run on one device, on eight laid out in three ways, and on two processes."""

import dataclasses
import functools
import math
import re

import chex
import jax
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.performance.programs import step_programs
from beit_jax.performance.tpu_estimate import estimate
from beit_jax.settings.mapping import task_config
from beit_jax.settings.run import MeshConfig
from beit_jax.tasks import make_task
from beit_jax.train import optimizer as optimizers
from beit_jax.train import sharding, step
from beit_jax.train import state as states
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.trees import path_string
from tests import tiny
from tests.train.test_resume import metrics_lines

STEPS = 5


def run_steps(task, mesh, steps: int = STEPS, pictures=None):
    """(losses of a few steps on random pictures, or on `pictures` again and again, parameters after
    them)."""
    config = task.config
    schedule = optimizers.learning_rate(config.optimizer, config.total_steps, 10)
    optimizer = optimizers.make_optimizer(config.optimizer, schedule, states.abstract_params(task))
    state = states.initial_state(task, optimizer, mesh, states.initial_params(task, config.seed))
    train_step = step.make_train_step(task, optimizer, schedule, mesh, config.total_steps)
    prepare = step.make_prepare(task, mesh, train=True)
    random, losses = np.random.default_rng(0), []
    for number in range(steps):
        batch = pictures or {
            view.name: random.integers(
                0, 256, (config.batch_size, view.size, view.size, 3), np.uint8
            )
            for view in task.views + task.prepare_views
        }
        rows = np.arange(config.batch_size, dtype=np.uint32)
        batch |= {
            'valid': np.ones(len(rows), np.float32),
            'substituted': np.zeros(len(rows), bool),
            'view': rows + number * len(rows),
            'grey': np.full(len(rows), 0.4, np.float32),
        }
        batch = sharding.put_batch(mesh, batch, config.batch_size)
        state, metrics = train_step(state, batch | prepare(task.frozen, batch))
        losses.append(float(metrics['loss']))
    return np.array(losses), jax.device_get(state['params'])


@pytest.fixture(scope='module')
def task(tokenizer_dir):
    """Every kind of parameter: shared bias table, LayerScale, drop path; sizes that eight devices
    divide."""
    return make_task(
        task_config(
            tiny.settings(
                tokenizer_dir, batch_size=16, model={'width': 32, 'hidden': 64, 'drop_path': 0.2}
            )
        )
    )


@pytest.fixture(scope='module')
def single(task):
    return run_steps(task, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize('shape', [(1, 8, 1, 1), (1, 1, 8, 1), (2, 1, 2, 2)])
def test_mesh_gives_the_losses_of_one_device(shape, task, single, monkeypatch):
    if shape == (1, 1, 8, 1):  # the vocabulary of 17 is not split by fsdp, its 32 inputs are
        assert sharding.state_shardings(
            sharding.make_mesh(MeshConfig(data=1, fsdp=8)), states.abstract_params(task)
        )
    # a vocabulary of 17 cannot be split: keep the head whole, as a user would with a rule of their
    # own
    if shape[3] > 1:
        rules = ((r'head/projection/', jax.sharding.PartitionSpec()), *sharding.RULES)
        with_rules = functools.partial(sharding.state_shardings, rules=rules)
        for module in (step, states):
            monkeypatch.setattr(module, 'state_shardings', with_rules)
    losses, params = run_steps(
        task, sharding.make_mesh(MeshConfig(**dict(zip(sharding.AXES, shape))))
    )
    np.testing.assert_allclose(losses, single[0], rtol=0, atol=1e-5)
    chex.assert_trees_all_close(params, single[1], rtol=1e-7, atol=1e-4)


def test_fsdp_splits_parameters_and_moments(task):
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    optimizer = optimizers.make_optimizer(
        task.config.optimizer, lambda _: 0.0, states.abstract_params(task)
    )
    rules = ((r'head/projection/', jax.sharding.PartitionSpec()), *sharding.RULES)
    shardings = sharding.state_shardings(mesh, states.abstract_state(task, optimizer), rules)
    fc1 = shardings['params']['encoder']['blocks']['01']['mlp']['fc1']['kernel']
    assert fc1.shard_shape((32, 64)) == (8, 32)
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings['optimizer'])
        if path_string(path).endswith('blocks/01/mlp/fc1/kernel')
    ]
    assert len(moments) == 2 and all(moment == fc1 for moment in moments)


@pytest.fixture(scope='module')
def in_parts(tokenizer_dir):
    """The same in four parts a step."""
    return make_task(
        task_config(
            tiny.settings(
                tokenizer_dir,
                batch_size=16,
                accumulate_steps=4,
                model={'width': 32, 'hidden': 64, 'drop_path': 0.2},
            )
        )
    )


@pytest.mark.parametrize('shape', [(1, 4, 1, 1), (2, 1, 2, 1), (1, 1, 1, 1)])
def test_accumulation_changes_nothing(shape, in_parts, single):
    losses, params = run_steps(
        in_parts,
        sharding.make_mesh(
            MeshConfig(**dict(zip(sharding.AXES, shape))), jax.devices()[: math.prod(shape)]
        ),
    )
    # Part a holds rows a, a + 4, ... of each replica: each row keeps its key, so masks, jitter and
    # drop path are the same.
    np.testing.assert_allclose(losses, single[0], rtol=0, atol=1e-5)
    chex.assert_trees_all_close(params, single[1], rtol=1e-7, atol=1e-4)


def received(config, mesh) -> dict:
    """Bytes that a device receives in a step, by kind of collective, and those of the
    parameters."""
    program = step_programs(config, mesh)['step']
    found = estimate(
        program.function.lower(*program.inputs).compile().as_text(), trips=100
    ).received
    return found | {
        'parameters': 4 * sum(leaf.size for leaf in jax.tree.leaves(program.inputs[0]['params']))
    }


def test_gradients_are_reduced_once_a_step(task, in_parts):
    """However many parts a step has, a device receives the gradients of the parameters once."""
    mesh = sharding.make_mesh(MeshConfig(data=4), jax.devices()[:4])
    whole, parts = (received(each.config, mesh) for each in (task, in_parts))
    # and how often each of 8192 tokens was hidden
    assert parts['all-reduce'] == pytest.approx(2 * 3 / 4 * parts['parameters'], rel=0.1)
    assert parts['all-reduce'] <= whole['all-reduce'] < 1.2 * parts['all-reduce']


@pytest.mark.parametrize('unroll', [1, 2])
def test_fsdp_moves_parameters_and_not_tokens(unroll, task):
    """Where tokens are many times the parameters, a device receives some copies of the parameters
    only; so in a scan over the blocks too."""
    config = dataclasses.replace(
        task.config, batch_size=256, model=dataclasses.replace(task.config.model, unroll=unroll)
    )
    found = received(config, sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
    parameters = found.pop('parameters')
    assert set(found) <= {'all-gather', 'all-reduce', 'reduce-scatter'}
    assert parameters < sum(found.values()) < 4 * parameters


def test_two_processes_are_one(tokenizer_dir, tmp_path):
    """Two processes of one device each, against one process of two; from step 5 on tokens are read
    that either of them computed."""
    changed = {
        'total_steps': 7,
        'evaluate_every': 4,
        'save_every': 4,
        'data': {'name': 'shapes', 'num_evaluate_examples': 13},
        'tokenizer': {'cache_views': 1},
    }
    pair = tiny.start_pair(tiny.arguments(tmp_path / 'pair', tokenizer_dir, **changed))
    one = tiny.run(
        tiny.arguments(tmp_path / 'one', tokenizer_dir, **changed), JAX_NUM_CPU_DEVICES='2'
    )
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert one.returncode == 0, one.stderr
    assert_same_figures(tmp_path / 'pair', tmp_path / 'one')
    params, _ = load_params(str(tmp_path / 'pair'))
    norm = np.linalg.norm(params['encoder']['blocks']['00']['attention']['query']['kernel'])
    assert read_alone(tmp_path / 'pair' / 'checkpoints' / '7') == pytest.approx((7, norm), rel=1e-6)


def assert_same_figures(workdir, reference):
    rows, expected = metrics_lines(workdir), metrics_lines(reference)
    assert [row['step'] for row in rows] == [row['step'] for row in expected]
    for row, wanted in zip(rows, expected):
        for name in wanted:
            assert row[name] == pytest.approx(wanted[name], abs=1e-5), (wanted['step'], name)


def read_alone(path) -> tuple[int, float]:
    """(step, norm of a parameter) of a checkpoint, read as docs/runs.md says, in one process of one
    device, without this package."""
    page = (tiny.REPOSITORY / 'docs' / 'runs.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    code = code.replace('/storage/W/checkpoints/1600', str(path))
    code = code.replace("state['step'], state", "print(state['step'], np.linalg.norm(state")
    code = code.replace("['kernel']", "['kernel']))") + "print('beit_jax' in sys.modules)"
    result = tiny.run(['-c', f'import sys\n{code}'], JAX_NUM_CPU_DEVICES='1')
    assert result.returncode == 0, result.stderr
    step, norm, ours = result.stdout.split()
    assert ours == 'False'
    return int(step), float(norm)


@pytest.mark.parametrize(
    ('mesh', 'message'),
    [
        (MeshConfig(data=3), r'3 x 1 x 1 does not make the 8 devices'),
        (MeshConfig(data=-1, fsdp=3), r'does not make the 8 devices'),
        (MeshConfig(data=-1, fsdp=-1), r'-1 \(what is left\) at most once'),
        (MeshConfig(data=0), r'use positive numbers'),
    ],
)
def test_impossible_mesh(mesh, message):
    with pytest.raises(RequestError, match=message):
        sharding.make_mesh(mesh)


def test_what_does_not_divide_is_named(task):
    with pytest.raises(
        RequestError, match=r'config.mesh.tensor=4 does not divide 2 of encoder/position_bias/table'
    ):
        table = states.abstract_params(task)['encoder']['position_bias']
        mesh = sharding.make_mesh(MeshConfig(data=2, tensor=4))
        sharding.state_shardings(mesh, {'encoder': {'position_bias': table}})
    with pytest.raises(RequestError, match=r'no sharding rule matches encoder/surprise'):
        sharding.state_shardings(
            sharding.make_mesh(MeshConfig()),
            {'encoder': {'surprise': jax.ShapeDtypeStruct((3, 5), np.float32)}},
        )
    with pytest.raises(RequestError, match=r'multiple of 16'):
        sharding.check_batch(sharding.make_mesh(MeshConfig()), 24, 2)


def test_every_model_has_its_rules(tokenizer_dir):
    mesh = sharding.make_mesh(MeshConfig())
    for positions in ('absolute', 'shared_bias', 'layer_bias'):
        for layers in (0, 1):
            changed = {
                'cls_head': {'layers': layers, 'early': 1},
                'model': {'positions': positions},
            }
            config = task_config(tiny.settings(tokenizer_dir, **changed))
            sharding.state_shardings(mesh, states.abstract_params(make_task(config)))
    config = task_config({'task': 'tokenizer', 'total_steps': 1})
    sharding.state_shardings(mesh, states.abstract_params(make_task(config)))


def test_local_rows_cover_the_batch():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(sharding.local_rows(mesh, 12), np.arange(12))
