"""Attention, plain and as a kernel that is interpreted, against torch's."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import torch

from beit_jax.machines.tpus import CHIPS
from beit_jax.models import attention, fused_attention, kernels
from beit_jax.models.attention import attend, attend_plain
from beit_jax.models.fused_attention import attend_by_kernel
from beit_jax.models.platform import ROWS
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import AXES, make_mesh, on_mesh

BATCH, TOKENS, HEADS, WIDTH = 8, 29, 4, 16


@functools.cache
def inputs(batch=BATCH, heads=HEADS):
    """(queries, keys, values, the queries' bias, the logits' bias), the gradient of the result."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    shape = batch, TOKENS, heads * WIDTH
    q, k, v = draw(*shape) / 2, draw(*shape), draw(*shape)
    return (q, k, v, draw(shape[2]), draw(heads, TOKENS, TOKENS)), draw(*shape)


def interpreted(q, k, v, query_bias, bias):
    """The kernels, which take a column for each token."""
    columns = (x.swapaxes(1, 2) for x in (q, k, v))
    return attend_by_kernel(*columns, query_bias, bias, True).swapaxes(1, 2)


def result_and_gradients(function, arguments, gradient):
    result, back = jax.vjp(function, *arguments)
    return result, *back(gradient)


def check_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()), rtol=0)


def by_torch(arguments, gradient):
    """torch's own attention, and its gradients."""
    leaves = [torch.tensor(array, requires_grad=True) for array in arguments]
    q, k, v, query_bias, bias = leaves
    split = lambda x: x.reshape(len(x), TOKENS, len(bias), -1).transpose(1, 2)
    read = torch.nn.functional.scaled_dot_product_attention(
        split(q + query_bias), split(k), split(v), attn_mask=bias.transpose(1, 2), scale=1.0
    )
    result = read.transpose(1, 2).reshape(q.shape)
    result.backward(torch.tensor(gradient))
    return result.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


@pytest.mark.parametrize('heads', [4, 3, 1])
@pytest.mark.parametrize('way', [attend_plain, interpreted], ids=['plain', 'kernel'])
def test_equals_torch(way, heads):
    arguments, gradient = inputs(batch=6, heads=heads)
    found = result_and_gradients(way, arguments, gradient)
    check_close(found, by_torch(arguments, gradient))


@pytest.mark.parametrize(
    ('memory', 'images', 'heads'),
    [(2**30, 5, 2), (1_000_000, 2, 2), (500_000, 1, 2), (240_000, 1, 1)],
)
def test_equals_torch_with_little_memory(memory, images, heads, monkeypatch):
    """Fewer images and heads at a time; of ten images five are the largest divisor up to eight."""
    monkeypatch.setattr(fused_attention, 'on_chip_memory', lambda: memory)
    arguments, gradient = inputs(batch=10)
    found = fused_attention._together(10, HEADS, WIDTH * 4, TOKENS, 2)
    assert found[:2] == (images, heads)
    check_close(
        result_and_gradients(interpreted, arguments, gradient), by_torch(arguments, gradient)
    )


@pytest.mark.parametrize('kind', CHIPS)
@pytest.mark.parametrize('tokens', [197, 577, 640])
def test_kernels_fit_on_each_chip(kind, tokens, monkeypatch):
    """Also where only one head of one image does, for which the least of all is needed."""
    monkeypatch.setattr(kernels, 'target_kind', lambda: f'TPU {kind}')
    memory = kernels.on_chip_memory()
    assert 0 < memory < CHIPS[kind].on_chip
    for kept in (1, 2):
        images, heads, needed = fused_attention._together(64, 12, 128, tokens, kept)
        assert images * heads >= 1 and needed <= max(memory, fused_attention._USUAL)
    assert fused_attention._together(64, 12, 128, 197, 2)[:2] == ((4 if kind == 'v4' else 8), 2)


def test_bfloat16_loses_no_more_in_the_kernel():
    arguments, gradient = inputs()
    narrow = [jnp.bfloat16(array) if i < 3 else array for i, array in enumerate(arguments)]
    errors, expected = {}, by_torch(arguments, gradient)
    for name, way in (('plain', attend_plain), ('kernel', interpreted)):
        found = result_and_gradients(way, narrow, jnp.bfloat16(gradient))
        pairs = zip(found, expected, strict=True)
        errors[name] = [np.abs(np.float32(one) - other).mean() for one, other in pairs]
        assert found[0].dtype == jnp.bfloat16 and found[-1].dtype == np.float32
    np.testing.assert_array_less(errors['kernel'], 1.2 * np.array(errors['plain']))


@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (2, 1, 2, 2), (1, 1, 2, 4)])
def test_kernel_on_a_mesh(mesh, monkeypatch):
    """Rows over slice x data x fsdp and heads over tensor.

    The gradients of what all rows share are sums over the devices.
    """
    for module in (attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    calls = []

    def noted(*arguments):
        calls.append(arguments[0].shape)
        return attend_by_kernel(*arguments, True)

    monkeypatch.setattr(attention, 'attend_by_kernel', noted)
    arguments, gradient = inputs()
    devices = make_mesh(MeshConfig(**dict(zip(AXES, mesh))))
    rows = jax.NamedSharding(devices, P(ROWS, None, 'tensor'))
    heads = jax.NamedSharding(devices, P('tensor'))
    placed = [jax.device_put(array, rows if i < 3 else heads) for i, array in enumerate(arguments)]
    on_devices = jax.jit(
        on_mesh(
            devices, functools.partial(result_and_gradients, functools.partial(attend, heads=HEADS))
        )
    )
    found = on_devices(placed, gradient)
    assert calls == [(BATCH // math.prod(mesh[:3]), HEADS * WIDTH // mesh[3], TOKENS)]
    check_close(found, result_and_gradients(attend_plain, arguments, gradient))


@pytest.mark.parametrize(
    ('tokens', 'width', 'by_kernel'), [(29, 16, True), (641, 16, False), (29, 13, False)]
)
def test_what_the_kernel_takes(tokens, width, by_kernel, monkeypatch):
    for module in (attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    q_BND, bias_HNN = jnp.zeros((2, tokens, 2 * width)), jnp.zeros((2, tokens, tokens))
    jaxpr = jax.make_jaxpr(functools.partial(attend, heads=2))(
        q_BND, q_BND, q_BND, jnp.zeros(2 * width), bias_HNN
    )
    assert ('pallas_call' in str(jaxpr)) == by_kernel
