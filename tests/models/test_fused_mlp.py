"""The second half of a block as kernels, interpreted, against torch's."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.models import attention, fused_mlp, kernels, layers
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.fused_mlp import choose_mlp, mlp_branch
from beit_jax.models.initializers import TruncatedNormal
from beit_jax.models.layers import Block
from beit_jax.models.platform import ROWS
from beit_jax.models.ways import PARTS, ways
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import AXES, make_mesh, on_mesh
from tests.models.test_attention import check_close, result_and_gradients

BATCH, TOKENS, WIDTH, HIDDEN, EPS = 8, 13, 48, 80, 1e-3
NAMES = 'x', 'keep', 'scale', 'shift', 'w1', 'b1', 'w2', 'b2'


@pytest.fixture(autouse=True)
def columns_in_two_parts(monkeypatch):
    monkeypatch.setattr(fused_mlp, '_COLUMNS', 64)


@functools.cache
def inputs(batch=BATCH):
    rng = np.random.default_rng(0)
    draw = lambda *shape, by=1: rng.standard_normal(shape, np.float32) / by
    x, keep = draw(batch, TOKENS, WIDTH), np.float32([0, 1.25, 1, 0.5, 0, 2, 1, 1])[:batch]
    norm = 1 + draw(WIDTH, by=5), draw(WIDTH, by=5)
    first = draw(WIDTH, HIDDEN, by=5), draw(HIDDEN, by=3)
    last = draw(HIDDEN, WIDTH, by=5), draw(WIDTH, by=3)
    return (x, keep, *norm, *first, *last), draw(batch, TOKENS, WIDTH)


def interpreted(*arguments):
    return mlp_branch(*arguments, EPS, True)


def plain(x, keep, scale, shift, w1, b1, w2, b2):
    """As a block without the kernels computes it."""
    mean, square = jnp.mean(x, 2, keepdims=True), jnp.mean(x.astype(jnp.float32) ** 2, 2)[..., None]
    units = (x - mean) * jax.lax.rsqrt(square - mean.astype(jnp.float32) ** 2 + EPS)
    normed = (units * scale + shift).astype(x.dtype)
    narrow = [array.astype(x.dtype) for array in (w1, b1, w2, b2)]
    active = layers.gelu(normed @ narrow[0] + narrow[1])
    return x + (active @ narrow[2] + narrow[3]) * keep[:, None, None].astype(x.dtype)


def by_torch(arguments, gradient):
    leaves = [torch.tensor(array, requires_grad=True) for array in arguments]
    x, keep, scale, shift, w1, b1, w2, b2 = leaves
    functional = torch.nn.functional
    normed = functional.layer_norm(x, (WIDTH,), scale, shift, EPS)
    branch = functional.gelu(normed @ w1 + b1) @ w2 + b2
    result = x + branch * keep.detach()[:, None, None]
    result.backward(torch.tensor(gradient))
    gradients = [np.zeros(len(x), np.float32) if leaf is keep else leaf.grad for leaf in leaves]
    return result.detach().numpy(), *map(np.asarray, gradients)


@pytest.mark.parametrize('batch', [8, 7, 1])
def test_equals_torch(batch):
    """4 images at a time on each of two cores, and one by one."""
    arguments, gradient = inputs(batch)
    found = result_and_gradients(interpreted, arguments, gradient)
    check_close(found, by_torch(arguments, gradient))
    # without a gradient nothing is kept for one
    np.testing.assert_array_equal(interpreted(*arguments), found[0])


def test_bfloat16_loses_no_more_in_the_kernels():
    arguments, gradient = inputs()
    narrow = jnp.bfloat16(arguments[0]), *arguments[1:]
    errors, expected = {}, by_torch(arguments, gradient)
    for name, way in (('plain', plain), ('kernels', interpreted)):
        found = result_and_gradients(way, narrow, jnp.bfloat16(gradient))
        assert found[0].dtype == found[1].dtype == jnp.bfloat16
        assert all(array.dtype == np.float32 for array in found[2:])
        pairs = [pair for i, pair in enumerate(zip(found, expected, strict=True)) if i != 2]
        errors[name] = [np.abs(np.float32(one) - other).mean() for one, other in pairs]
    np.testing.assert_array_less(errors['kernels'], 1.2 * np.array(errors['plain']))


@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (2, 1, 2, 2)])
def test_on_a_mesh(mesh):
    """Images over slice x data x fsdp; the gradients of what they share are sums over devices."""
    arguments, gradient = inputs()
    devices = make_mesh(MeshConfig(**dict(zip(AXES, mesh))))
    rows, whole = jax.NamedSharding(devices, P(ROWS)), jax.NamedSharding(devices, P())
    placed = [jax.device_put(array, rows if i < 2 else whole) for i, array in enumerate(arguments)]
    run = jax.jit(on_mesh(devices, functools.partial(result_and_gradients, interpreted)))
    check_close(run(placed, gradient), by_torch(arguments, gradient))


@pytest.mark.parametrize('layer_scale', [0.5, 0.0])
def test_a_block_takes_them(layer_scale, monkeypatch):
    """The same block with and without, LayerScale and stochastic depth among it."""

    def run():
        options = {'layer_scale': layer_scale, 'norm_eps': EPS, 'qkv_bias': True, 'grid': None}
        initial = TruncatedNormal(0.2, 2.0)
        block = Block(
            2, WIDTH, 3, HIDDEN, kernel_init=initial, way='auto', projections_way='plain',
            mlp_way='auto', dtype=jnp.float32, rngs=nnx.Rngs(5), **options,
        )  # fmt: skip
        graphdef, params = nnx.split(block)
        keep_2B = jnp.stack([jnp.ones(BATCH), inputs()[0][1]])
        apply = lambda params, x_BND: nnx.merge(graphdef, params)(x_BND, None, keep_2B)
        result, back = jax.vjp(apply, params, inputs()[0][0])
        return jax.tree.leaves((result, back(jnp.asarray(inputs()[1]))))

    expected, calls = run(), []

    def noted(*arguments):
        calls.append(arguments[-1])
        return mlp_branch(*arguments, True)

    monkeypatch.setattr(layers, 'choose_mlp', lambda *_, **__: 'pallas')
    monkeypatch.setattr(layers, 'mlp_branch', noted)
    check_close(run(), expected)
    assert calls == [EPS]


V6E, V5E = 'TPU v6 lite', 'TPU v5 lite'


@pytest.mark.parametrize(
    ('kind', 'setting', 'sizes', 'found'),
    [
        (V6E, 'auto', {}, 'pallas'),
        (V6E, 'plain', {}, 'plain'),
        (V5E, 'auto', {}, 'pallas'),
        (V5E, 'pallas', {}, 'pallas'),
        ('TPU v5', 'auto', {}, 'pallas'),
        ('TPU v4', 'auto', {}, 'plain'),
        (V6E, 'auto', {'width': 192}, 'plain'),
        (V6E, 'auto', {'dtype': 'float32'}, 'plain'),
        (V6E, 'auto', {'hidden': 100 * 1024}, 'plain'),
        ('TPU v9', 'auto', {}, 'plain'),
        (V6E, 'pallas', {'width': 192}, 'config.model.width is 192, no multiple of 128'),
        (V6E, 'auto', {'tokens': 10_000}, 'plain'),
        (V6E, 'pallas', {'dtype': 'float32'}, 'set config.compute_dtype=bfloat16'),
        (
            V6E,
            'pallas',
            {'hidden': 100 * 1024},
            '768 x 102400 and 197 tokens do not fit',
        ),
        ('TPU v4', 'pallas', {}, 'do not fit on the chip of a TPU v4'),
    ],
)
def test_what_they_take(kind, setting, sizes, found, monkeypatch):
    monkeypatch.setattr(kernels, 'target_platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'target_kind', lambda: kind)
    given = {'dtype': 'bfloat16', 'tokens': 197, 'width': 768, 'hidden': 3072} | sizes
    if found in ('plain', 'pallas'):
        assert choose_mlp(setting, **given) == found
    else:
        with pytest.raises(RequestError, match=rf'config.model.mlp=pallas: .*{found}.* auto'):
            choose_mlp(setting, **given)


@pytest.mark.parametrize('part', ['projections', 'mlp'])
def test_elsewhere(part):
    assert ways(EncoderConfig(), (14, 14), 'bfloat16')[part] == 'plain'
    with pytest.raises(RequestError, match='these kernels are for TPUs, this is a cpu'):
        ways(EncoderConfig(**{part: 'pallas'}), (14, 14), 'bfloat16')
    with pytest.raises(RequestError, match='Allowed: auto, plain, pallas'):
        EncoderConfig(**{part: 'cudnn'})


def test_whole_products_on_each_device(monkeypatch):
    for module in (attention, kernels):
        monkeypatch.setattr(module, 'target_platform', lambda: 'tpu')
    monkeypatch.setattr(kernels, 'target_kind', lambda: V6E)
    mesh = make_mesh(MeshConfig(slice=1, data=2, fsdp=1, tensor=4))
    asked = EncoderConfig(), (14, 14), 'bfloat16'
    assert on_mesh(mesh, ways)(*asked) == {
        'attention': 'pallas',
        'projections': 'plain',
        'mlp': 'plain',
    }
    assert ways(*asked) == dict.fromkeys(PARTS, 'pallas')
