import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import torch

from beit_jax.models import attention
from beit_jax.models.attention import attend, attend_by_kernel, attend_plain
from beit_jax.models.layers import gelu
from beit_jax.models.platform import ROWS
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import AXES, make_mesh, on_mesh

BATCH, TOKENS, HEADS, WIDTH = 8, 29, 4, 16


@functools.cache
def inputs(batch=BATCH, heads=HEADS):
    """Queries, keys, values, the queries' bias, the bias of the logits; and the gradient of the
    result."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    shape = batch, TOKENS, heads * WIDTH
    return (
        draw(*shape) / 2,
        draw(*shape),
        draw(*shape),
        draw(shape[2]),
        draw(heads, TOKENS, TOKENS),
    ), draw(*shape)


def interpreted(q, k, v, query_bias, bias):
    """The kernels, which take a column for each token."""
    return attend_by_kernel(
        *(x.swapaxes(1, 2) for x in (q, k, v)), query_bias, bias, True
    ).swapaxes(1, 2)


def result_and_gradients(function, arguments, gradient):
    result, back = jax.vjp(function, *arguments)
    return result, *back(gradient)


def by_torch(arguments, gradient):
    """torch's own attention, and its gradients."""
    q, k, v, query_bias, bias = leaves = [
        torch.tensor(array, requires_grad=True) for array in arguments
    ]
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
    for found, wanted in zip(
        result_and_gradients(way, arguments, gradient), by_torch(arguments, gradient), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=0)


def test_bfloat16_loses_no_more_in_the_kernel():
    arguments, gradient = inputs()
    narrow = [jnp.bfloat16(array) if i < 3 else array for i, array in enumerate(arguments)]
    errors = {}
    for name, way in (('plain', attend_plain), ('kernel', interpreted)):
        found = result_and_gradients(way, narrow, jnp.bfloat16(gradient))
        errors[name] = [
            np.abs(np.float32(a) - b).mean()
            for a, b in zip(found, by_torch(arguments, gradient), strict=True)
        ]
        assert found[0].dtype == jnp.bfloat16 and found[-1].dtype == np.float32
    np.testing.assert_array_less(errors['kernel'], 1.2 * np.array(errors['plain']))


@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (2, 1, 2, 2), (1, 1, 2, 4)])
def test_kernel_on_a_mesh(mesh, monkeypatch):
    """Rows over slice x data x fsdp and heads over tensor: the gradients of what all rows share are
    sums over the devices."""
    monkeypatch.setattr(attention, 'target_platform', lambda: 'tpu')
    calls = []

    def noted(*arguments):
        calls.append(arguments[0].shape)
        return attend_by_kernel(*arguments, True)

    monkeypatch.setattr(attention, 'attend_by_kernel', noted)
    arguments, gradient = inputs()
    devices = make_mesh(MeshConfig(**dict(zip(AXES, mesh))))
    rows, heads = (
        jax.NamedSharding(devices, spec) for spec in (P(ROWS, None, 'tensor'), P('tensor'))
    )
    placed = [jax.device_put(array, rows if i < 3 else heads) for i, array in enumerate(arguments)]
    found = jax.jit(on_mesh(devices, functools.partial(result_and_gradients, attend)))(
        placed, gradient
    )
    assert calls == [(BATCH // math.prod(mesh[:3]), HEADS * WIDTH // mesh[3], TOKENS)]
    for one, wanted in zip(
        found, result_and_gradients(attend_plain, arguments, gradient), strict=True
    ):
        np.testing.assert_allclose(one, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize(
    ('tokens', 'width', 'by_kernel'), [(29, 16, True), (641, 16, False), (29, 13, False)]
)
def test_what_the_kernel_takes(tokens, width, by_kernel, monkeypatch):
    monkeypatch.setattr(attention, 'target_platform', lambda: 'tpu')
    q_BND, bias_HNN = jnp.zeros((2, tokens, 2 * width)), jnp.zeros((2, tokens, tokens))
    jaxpr = jax.make_jaxpr(attend)(q_BND, q_BND, q_BND, jnp.zeros(2 * width), bias_HNN)
    assert ('pallas_call' in str(jaxpr)) == by_kernel


def test_gelu():
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, 1e-4, -1e-4, 40, -40]]).astype(np.float32)
    values, slopes = jax.vmap(jax.value_and_grad(gelu))(x)
    leaf = torch.tensor(x, requires_grad=True)
    wanted = torch.nn.functional.gelu(leaf)
    wanted.sum().backward()
    np.testing.assert_allclose(values, wanted.detach(), atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(slopes, leaf.grad, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(gelu(x), values)
