"""Checkpoints on disk: readable by Orbax alone, strict when read, only the newest kept."""
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from beit_jax.errors import RequestError
from beit_jax.train.checkpoint import Checkpoints
from beit_jax.weights.checkpoint import find_checkpoint, load_params

STATE = {'step': jnp.int32(7), 'params': {'blocks': {'00': {'kernel': jnp.arange(15, dtype=jnp.float32).reshape(3, 5)}}},
         'optimizer': (jnp.ones(3, jnp.bfloat16),)}


def abstract(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), tree)


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 5, 7):
        checkpoints.save(STATE, step, {'task': 'pretrain', 'data': {'examples': 11}})
    checkpoints.close()
    return tmp_path


def test_round_trip_and_what_is_kept(workdir):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest == 7
    assert sorted(entry.name for entry in (workdir / 'checkpoints').iterdir()) == ['5', '7']
    restored = checkpoints.restore(7, abstract(STATE))
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    assert checkpoints.description(7) == {'task': 'pretrain', 'data': {'examples': 11}}


def test_orbax_alone_reads_it(workdir):
    arrays = ocp.training.Checkpointer(workdir / 'checkpoints').load(7)
    np.testing.assert_array_equal(arrays['params']['blocks']['00']['kernel'], np.arange(15).reshape(3, 5))


def test_parameters_alone(workdir):
    params, description = load_params(str(workdir))
    np.testing.assert_array_equal(params['blocks']['00']['kernel'], np.arange(15).reshape(3, 5))
    assert description['task'] == 'pretrain'
    assert find_checkpoint(str(workdir / 'checkpoints' / '5')).name == '5'
    with pytest.raises(RequestError, match='neither a checkpoint nor a work directory'):
        find_checkpoint(str(workdir / 'nothing'))


def test_the_moving_average_stands_for_the_parameters(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(STATE | {'ema': {'kernel': jnp.full(3, 0.5)}}, 3, {})
    checkpoints.close()
    np.testing.assert_array_equal(load_params(str(tmp_path))[0]['kernel'], np.full(3, 0.5))


@pytest.mark.parametrize(('kernel', 'message'), [
    (jnp.zeros((3, 6)), r'kernel is float32\[3, 5\], the config wants float32\[3, 6\]'),
    (jnp.zeros((3, 5), jnp.bfloat16), r'kernel is float32\[3, 5\], the config wants bfloat16\[3, 5\]'),
])
def test_another_model_is_refused(kernel, message, workdir):
    wanted = STATE | {'params': {'blocks': {'00': {'kernel': kernel}}}}
    with pytest.raises(RequestError, match=message):
        Checkpoints(workdir).restore(7, abstract(wanted))
    with pytest.raises(RequestError, match=r'another model.*blocks/01/kernel is missing'):
        Checkpoints(workdir).restore(7, abstract(STATE | {'params': {'blocks': {'00': {'kernel': jnp.zeros((3, 5))},
                                                                                '01': {'kernel': jnp.zeros((3, 5))}}}}))
