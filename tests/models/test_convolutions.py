"""Layers of a convolutional head against torch's, in training and over devices, float32: 1e-5."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import torch

from beit_jax.models.convolutions import STATISTICS, BatchNorm, Deconvolution
from beit_jax.weights.pytorch import names
from tests.models.layouts import largest, our_order, torch_order
from tests.torch_segmenters import randomize_segmenter

BATCH = 3


def test_deconvolution():
    theirs = torch.nn.ConvTranspose2d(7, 7, 2, 2)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    kernel = names.from_torch('head/times2/deconv/kernel', theirs.weight.detach().numpy())
    ours = Deconvolution(7, dtype='float32', rngs=nnx.Rngs(0))
    ours.kernel.set_value(jnp.asarray(kernel))
    ours.bias.set_value(jnp.asarray(theirs.bias.detach().numpy()))
    assert largest(ours(x), our_order(theirs(torch_order(x)))) < 1e-5


def random_norms(width, momentum=0.3):
    """(torch's, the graphdef and parameters of ours), alike."""
    torch.manual_seed(0)
    theirs = randomize_segmenter(torch.nn.BatchNorm2d(width, momentum=momentum))
    ours = BatchNorm(width, eps=1e-5, momentum=momentum, rngs=nnx.Rngs(0))
    params = {}
    for name in ('scale', 'bias', 'running_mean', 'running_var'):
        value = theirs.state_dict()[name.replace('scale', 'weight')]
        params[name] = jnp.asarray(value.numpy().copy())
    return theirs, nnx.graphdef(ours), params


def normalise(graphdef, params, x, train):
    """(result, running statistics)."""
    norm = nnx.merge(graphdef, params)
    return norm(x, train), {name: getattr(norm, name)[...] for name in STATISTICS}


def check_statistics(found, theirs):
    for name in STATISTICS:
        np.testing.assert_allclose(found[name], getattr(theirs, name), rtol=1e-5, atol=1e-6)


def test_batch_norm():
    """Result, gradients and running statistics, which have the unbiased variance."""
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(0.7, 2, size=(BATCH, 5, 2, 11)).astype(np.float32) for _ in range(2))
    theirs, graphdef, params = random_norms(11)
    y, _ = normalise(graphdef, params, x, False)
    assert largest(y, our_order(theirs(torch_order(x)))) < 1e-5
    theirs.train()
    input_ = torch_order(x).requires_grad_()
    expected = theirs(input_)
    (expected * torch_order(weights)).sum().backward()

    def loss(params, x):
        y, statistics = normalise(graphdef, params, x, True)
        return jnp.sum(y * weights), (y, statistics)

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (y, statistics)), (by_params, by_x) = differentiated(params, x)
    assert largest(y, our_order(expected)) < 1e-5 and largest(by_x, our_order(input_.grad)) < 1e-5
    check_statistics(statistics, theirs)
    assert not by_params['running_mean'].any() and not by_params['running_var'].any()
    np.testing.assert_allclose(by_params['scale'], theirs.weight.grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_params['bias'], theirs.bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('how', ['jit', 'shard_map'])
def test_batch_norm_over_devices(how):
    """Eight devices with a row each give what torch gives on all rows."""
    x = np.random.default_rng(0).normal(0.7, 2, size=(8, 3, 2, 5)).astype(np.float32)
    # no device's own statistics are like the others'
    x += np.arange(8, dtype=np.float32)[:, None, None, None]
    theirs, graphdef, params = random_norms(5)
    expected = theirs.train()(torch_order(x))
    mesh = Mesh(np.array(jax.devices()), 'data')
    apply = functools.partial(normalise, graphdef, train=True)
    if how == 'shard_map':
        apply = jax.shard_map(
            apply, mesh=mesh, in_specs=(P(), P('data')), out_specs=(P('data'), P())
        )
    y, statistics = jax.jit(apply)(params, jax.device_put(x, NamedSharding(mesh, P('data'))))
    assert largest(y, our_order(expected)) < 1e-5
    check_statistics(statistics, theirs)


def test_batch_norm_of_one_number():
    """One image pooled to one cell, where torch stops: the bias, and no NaN."""
    _, graphdef, params = random_norms(5)
    y, statistics = normalise(graphdef, params, np.ones((1, 1, 1, 5), np.float32), True)
    np.testing.assert_allclose(y[0, 0, 0], params['bias'], atol=1e-6)
    np.testing.assert_allclose(statistics['running_var'], 0.7 * params['running_var'], rtol=1e-6)
