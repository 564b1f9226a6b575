"""What stands beside attention in a block as kernels, interpreted, against torch's."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.models import attention, kernels, layers
from beit_jax.models.fused_projections import add_read, choose_projections, queries_keys_values
from beit_jax.models.initializers import TruncatedNormal
from beit_jax.models.layers import Block
from beit_jax.models.platform import ROWS
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import AXES, make_mesh, on_mesh
from tests.models.test_attention import check_close

BATCH, TOKENS, WIDTH, EPS = 8, 13, 48, 1e-3


@functools.cache
def inputs(batch=BATCH):
    """What each of the two functions takes, and gradients of what it gives."""
    rng = np.random.default_rng(0)
    draw = lambda *shape, by=1: rng.standard_normal(shape, np.float32) / by
    x, norm = draw(batch, TOKENS, WIDTH), (1 + draw(WIDTH, by=5), draw(WIDTH, by=5))
    weights, columns = [draw(WIDTH, WIDTH, by=5) for _ in range(4)], (batch, WIDTH, TOKENS)
    keep = np.float32([0, 1.25, 1, 0.5, 0, 2, 1, 1])[:batch]
    return {
        project: ((x, *norm, *weights[:3]), (draw(*x.shape), *(draw(*columns) for _ in range(3)))),
        add: ((x, draw(*columns), keep, weights[3], draw(WIDTH, by=3)), (draw(*x.shape),)),
    }


def project(x, scale, shift, *weights):
    return queries_keys_values(x, scale, shift, weights, EPS, True)


def add(*arguments):
    return (add_read(*arguments, True),)


def project_plainly(x, scale, shift, *weights):
    """As a block without the kernels computes it."""
    wide = x.astype(jnp.float32)
    mean, square = jnp.mean(wide, 2, keepdims=True), jnp.mean(wide * wide, 2, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(square - mean * mean + EPS) * scale + shift
    products = [normed.astype(x.dtype) @ weight.astype(x.dtype) for weight in weights]
    return x, *(product.swapaxes(1, 2) for product in products)


def add_plainly(x, read, keep, weight, bias):
    branch = read.swapaxes(1, 2) @ weight.astype(x.dtype) + bias.astype(x.dtype)
    return (x + branch * keep[:, None, None].astype(x.dtype),)


def torch_project(x, scale, shift, *weights):
    normed = torch.nn.functional.layer_norm(x, (WIDTH,), scale, shift, EPS)
    return x * 1, *((normed @ weight).swapaxes(1, 2) for weight in weights)


def torch_add(x, read, keep, weight, bias):
    return (x + (read.swapaxes(1, 2) @ weight + bias) * keep.detach()[:, None, None],)


KERNELS = {project: (project_plainly, torch_project), add: (add_plainly, torch_add)}
kernels_of_a_block = pytest.mark.parametrize('function', KERNELS, ids=['project', 'add'])


def results_and_gradients(function, arguments, gradients):
    results, back = jax.vjp(function, *arguments)
    return *results, *back(tuple(gradients))


def by_torch(function, arguments, gradients):
    leaves = [torch.tensor(array, requires_grad=True) for array in arguments]
    results = KERNELS[function][1](*leaves)
    torch.autograd.backward(results, [torch.tensor(array) for array in gradients])
    grads = (
        np.zeros(leaf.shape, np.float32) if leaf.grad is None else leaf.grad for leaf in leaves
    )
    return *(result.detach().numpy() for result in results), *map(np.asarray, grads)


@kernels_of_a_block
@pytest.mark.parametrize('batch', [8, 7, 1])
def test_equals_torch(batch, function):
    """4 images at a time on each of two cores, and one by one."""
    given = inputs(batch)[function]
    check_close(results_and_gradients(function, *given), by_torch(function, *given))


@kernels_of_a_block
def test_bfloat16_loses_no_more_in_the_kernels(function):
    arguments, gradients = inputs()[function]
    narrow = [jnp.bfloat16(array) if array.ndim == 3 else array for array in arguments]
    errors, expected = {}, by_torch(function, arguments, gradients)
    for way in (KERNELS[function][0], function):
        found = results_and_gradients(way, narrow, map(jnp.bfloat16, gradients))
        results = len(gradients)
        dtypes = [jnp.bfloat16] * results + [array.dtype for array in narrow]
        assert [array.dtype for array in found] == dtypes
        pairs = zip(found, expected, strict=True)
        errors[way] = [np.abs(np.float32(one) - other).mean() for one, other in pairs]
        if function is add:
            del errors[way][3]  # keep has no gradient
        else:
            del errors[way][0]  # x is as it was
    plain, kernels = errors.values()
    np.testing.assert_array_less(kernels, 1.2 * np.array(plain))


@kernels_of_a_block
@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (2, 1, 2, 2)])
def test_on_a_mesh(mesh, function):
    """Images over slice x data x fsdp; the gradients of what they share are sums over devices."""
    arguments, gradients = inputs()[function]
    devices = make_mesh(MeshConfig(**dict(zip(AXES, mesh))))
    rows, whole = jax.NamedSharding(devices, P(ROWS)), jax.NamedSharding(devices, P())
    placed = [jax.device_put(each, rows if len(each) == BATCH else whole) for each in arguments]
    run = jax.jit(on_mesh(devices, functools.partial(results_and_gradients, function)))
    check_close(run(placed, gradients), by_torch(function, arguments, gradients))


@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('layer_scale', [0.5, 0.0])
def test_a_block_takes_them(layer_scale, qkv_bias, monkeypatch):
    """The same block with and without: result and all gradients, with stochastic depth."""

    def run():
        options = {'layer_scale': layer_scale, 'norm_eps': EPS, 'qkv_bias': qkv_bias}
        block = Block(
            2, WIDTH, 3, 80, kernel_init=TruncatedNormal(0.2, 2.0), grid=(3, 4), way='auto',
            projections_way='auto', mlp_way='plain', dtype=jnp.float32, rngs=nnx.Rngs(5), **options,
        )  # fmt: skip
        graphdef, params = nnx.split(block)
        (x, _, keep, *_), (gradient,) = inputs()[add]
        keep_2B = jnp.stack([keep, jnp.ones(BATCH)])
        apply = lambda params, x_BND: nnx.merge(graphdef, params)(x_BND, None, keep_2B)
        result, back = jax.vjp(apply, params, x)
        return jax.tree.leaves((result, back(gradient)))

    expected, calls = run(), []
    for function in (queries_keys_values, add_read):

        def noted(*arguments, function=function):
            calls.append(function)
            return function(*arguments, True)

        monkeypatch.setattr(layers, function.__name__, noted)
    monkeypatch.setattr(layers, 'choose_projections', lambda *_, **__: 'pallas')
    check_close(run(), expected)
    assert calls == [queries_keys_values, add_read]


V6E, V5E = 'TPU v6 lite', 'TPU v5 lite'


@pytest.mark.parametrize(
    ('kind', 'settings', 'sizes', 'found'),
    [
        (V6E, ('auto', 'auto'), {}, 'pallas'),
        (V6E, ('auto', 'pallas'), {}, 'pallas'),
        (V6E, ('plain', 'auto'), {}, 'plain'),
        (V6E, ('auto', 'plain'), {}, 'plain'),
        (V5E, ('auto', 'auto'), {}, 'pallas'),
        (V5E, ('pallas', 'auto'), {}, 'pallas'),
        ('TPU v5', ('auto', 'auto'), {}, 'pallas'),
        ('TPU v4', ('auto', 'auto'), {}, 'plain'),
        (V6E, ('auto', 'auto'), {'width': 192}, 'plain'),
        (V6E, ('auto', 'auto'), {'dtype': 'float32'}, 'plain'),
        (V6E, ('auto', 'auto'), {'tokens': 641}, 'plain'),
        (V6E, ('auto', 'auto'), {'width': 8192}, 'plain'),
        (V6E, ('pallas', 'plain'), {}, 'config.model.attention is plain: set it to pallas'),
        (V6E, ('pallas', 'auto'), {'width': 192}, 'config.model.width is 192, no multiple of 128'),
        (V6E, ('pallas', 'auto'), {'tokens': 641}, '641 tokens are more than 640'),
        (
            V6E,
            ('pallas', 'auto'),
            {'width': 8192},
            '8192 x 8192 and 197 tokens do not fit on the chip of a TPU v6 lite: lower',
        ),
        (
            'TPU v5',
            ('pallas', 'auto'),
            {'tokens': 577, 'width': 1024},
            'do not fit on the chip of a TPU v5: run it on a v5e or v6e, or lower',
        ),
        ('TPU v4', ('pallas', 'auto'), {}, 'do not fit on the chip of a TPU v4'),
    ],
)
def test_what_they_take(kind, settings, sizes, found, monkeypatch):
    for module in (attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'target_kind', lambda: kind)
    given = {'dtype': 'bfloat16', 'tokens': 197, 'width': 768} | sizes
    heads = given['width'] // 64
    if found in ('plain', 'pallas'):
        assert choose_projections(*settings, heads, **given) == found
    else:
        with pytest.raises(
            RequestError, match=rf'config.model.projections=pallas: .*{found}.* auto'
        ):
            choose_projections(*settings, heads, **given)
