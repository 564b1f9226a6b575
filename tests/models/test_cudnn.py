"""Attention by cuDNN: what it is given computes the same as plain JAX, and lowers in every program.

A function of JAX stands for the kernel, and refuses what that refuses.
"""

import dataclasses
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.models import attention, kernels, platform
from beit_jax.models.attention import attend, attend_plain
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.heads import MaskedImageModel
from beit_jax.models.platform import ROWS
from beit_jax.performance.programs import step_programs
from beit_jax.settings.mapping import task_config
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import AXES, make_mesh, on_mesh
from tests import tiny
from tests.models.test_attention import check_close, result_and_gradients
from tests.models.test_encoder import filled

CUDNN = 'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version'
BATCH = 3


def stand_in(query, key, value, bias=None, *, scale, implementation):
    """jax.nn.dot_product_attention with cuDNN's limits, in float32 too."""
    tokens, heads, width = query.shape[1:]
    assert implementation == 'cudnn' and query.shape == key.shape == value.shape
    assert tokens % 2 == 0 and width % 8 == 0
    logits_BHNN = scale * jnp.einsum('bqhk,bshk->bhqs', query, key)
    if bias is not None:
        assert bias.shape == (1, heads, tokens, tokens) and bias.dtype == query.dtype
        assert np.isfinite(attention._HIDDEN)
        logits_BHNN += bias
    return jnp.einsum('bhqs,bshk->bqhk', jax.nn.softmax(logits_BHNN), value)


@pytest.fixture
def cudnn(monkeypatch):
    """A machine with cuDNN, which here takes float32."""
    monkeypatch.setattr(attention, 'cudnn_hindrance', lambda: '')
    monkeypatch.setattr(attention, '_CUDNN_DTYPES', ('float32', 'bfloat16'))
    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)


def model(side, **settings):
    sizes = {'width': 16, 'heads': 2, 'depth': 2, 'hidden': 24} | settings
    config = EncoderConfig(patch_size=1, drop_path=0.4, **sizes)
    return filled(lambda: MaskedImageModel(config, (side, side), 7, rngs=nnx.Rngs(0)))


def loss_and_gradients(side, way, **settings):
    """Of a pre-training loss with hidden patches and stochastic depth, and the logits."""
    rng, patches = np.random.default_rng(0), side * side
    images_BHWC = rng.standard_normal((BATCH, side, side, 3), np.float32)
    slots_BK = np.stack([np.sort(rng.permutation(patches)[: patches // 4]) for _ in range(BATCH)])
    mask_BP = np.zeros((BATCH, patches), bool)
    np.put_along_axis(mask_BP, slots_BK, True, axis=1)
    targets_BKV = np.eye(7, dtype=np.float32)[rng.integers(0, 7, slots_BK.shape)]
    keys_B = jax.random.split(jax.random.key(2), BATCH)
    graphdef, params = nnx.split(model(side, attention=way, **settings))

    def loss(params):
        run = nnx.merge(graphdef, params)
        logits_BKV = run(images_BHWC, mask_BP, slots_BK, keys_B=keys_B)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits_BKV) * targets_BKV, -1)), logits_BKV

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(
    ('side', 'settings'),
    [
        (14, {'positions': 'shared_bias'}),
        (14, {'positions': 'layer_bias', 'unroll': 2}),
        (14, {'positions': 'absolute'}),
        (14, {'positions': 'absolute+shared_bias', 'unroll': 2, 'remat': True}),
        (14, {'positions': 'layer_bias', 'norm_eps': 0.0, 'remat': True, 'remat_policy': 'dots'}),
        (24, {'positions': 'shared_bias'}),
        (24, {'positions': 'layer_bias'}),
        (24, {'positions': 'absolute'}),
        (32, {'positions': 'shared_bias', 'width': 8, 'heads': 1}),
        (32, {'positions': 'layer_bias', 'width': 8, 'heads': 1}),
        (5, {'positions': 'shared_bias'}),  # an even number as it is
    ],
    ids=str,
)
def test_equals_plain(side, settings, cudnn):
    """197, 577 and 1025 tokens: loss, logits and each gradient, the bias tables' too."""
    (loss, logits), gradients = loss_and_gradients(side, 'cudnn', **settings)
    (wanted, wanted_logits), expected = loss_and_gradients(side, 'plain', **settings)
    assert abs(loss / wanted - 1) < 1e-5
    check_close([logits], [wanted_logits])
    leaves = jax.tree.leaves_with_path(gradients)
    assert any("'table'" in str(path) for path, _ in leaves) == ('bias' in settings['positions'])
    for (path, gradient), other in zip(leaves, jax.tree.leaves(expected), strict=True):
        scale = np.abs(other).max()
        assert scale > 1e-6, path
        np.testing.assert_allclose(gradient, other, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize('positions', ['shared_bias', 'layer_bias'])
def test_what_was_filled_up_is_cut_off(positions, cudnn):
    """From all that an encoder gives: the last block, each block, some of them, attention maps."""

    def read(way):
        config = EncoderConfig(
            width=16, heads=2, depth=2, hidden=24, patch_size=1, positions=positions, attention=way
        )
        encoder = filled(lambda: Encoder(config, (4, 4), masked=False, rngs=nnx.Rngs(0)))
        images = np.random.default_rng(0).standard_normal((BATCH, 4, 4, 3), np.float32)
        each = encoder(images, every_layer=lambda x_BND: x_BND)
        return (
            encoder(images),
            each,
            *encoder.taps(images, (-1, 0, 1)),
            encoder.attention(images, 1),
        )

    found = read('cudnn')
    assert [x.shape[-2] for x in found] == [17] * 6 and found[-1].shape[-1] == 17
    check_close(found, read('plain'))
    np.testing.assert_allclose(found[-1].sum(-1), 1, atol=1e-5)


# 37 tokens, which are filled up; a large eps, or the update would be the sign of each gradient
ODD = {
    'data': {'image_size': 24},
    'optimizer': {'lr': 1.0, 'eps': 0.1, 'clip_norm': 0.5},
}
LAYERS = {'layer_scale': 0.1, 'drop_path': 0.4}


def whole_step(settings, way):
    """(state, metrics) after the training step of a run, from parameters far from zero."""
    config = task_config(settings | {'model': settings['model'] | {'attention': way}})
    program = step_programs(config, make_mesh(config.mesh, jax.devices()[:1]))['step']
    rng, (state, batch) = np.random.default_rng(0), program.inputs

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype)
        return rng.integers(0, 2 if leaf.dtype == jnp.bool_ else 200, leaf.shape).astype(leaf.dtype)

    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    start |= {'params': jax.tree.map(draw, state['params']), 'step': np.int32(1)}
    batch = jax.tree.map(draw, batch) | {'valid': np.ones(config.batch_size, np.float32)}
    return jax.tree.leaves_with_path(program.function(start, batch))


@pytest.mark.parametrize(
    'settings',
    [
        tiny.settings('', **ODD, model=LAYERS | {'positions': 'shared_bias'}),
        tiny.classify_settings(**ODD, model=LAYERS | {'positions': 'layer_bias'}),
    ],
    ids=['pretrain', 'fine-tuning'],
)
def test_a_whole_step(settings, cudnn):
    """Jitter, blockwise masks, stochastic depth, loss, clipped gradients (Adam's first moments are
    a tenth of them) and what is learned."""
    found, wanted = whole_step(settings, 'cudnn'), whole_step(settings, 'plain')
    for (path, array), (_, other) in zip(found, wanted, strict=True):
        scale = np.abs(other).max()
        assert scale > 0 or not array.shape, path
        np.testing.assert_allclose(array, other, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (2, 1, 2, 2), (1, 1, 2, 4)])
@pytest.mark.parametrize('biased', [True, False])
def test_on_a_mesh(mesh, biased, cudnn):
    rng, (batch, tokens, heads, width) = np.random.default_rng(0), (8, 22, 4, 8)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    shape = batch, tokens, heads * width
    arrays = (
        draw(*shape) / 2,
        draw(*shape),
        draw(*shape),
        draw(shape[2]),
        draw(heads, tokens, tokens),
    )
    gradient = draw(*shape)
    devices = make_mesh(MeshConfig(**dict(zip(AXES, mesh))))
    rows = jax.NamedSharding(devices, P(ROWS, None, 'tensor'))
    of_heads = jax.NamedSharding(devices, P('tensor'))
    placed = [jax.device_put(x, rows if i < 3 else of_heads) for i, x in enumerate(arrays)]
    if not biased:
        arrays, placed = (*arrays[:4], 0 * arrays[4]), placed[:4]

    def by_cudnn(q_BND, k_BND, v_BND, query_bias_D, bias_HNN=None):
        return attend(q_BND, k_BND, v_BND, query_bias_D, bias_HNN, heads, 'cudnn')

    run = jax.jit(on_mesh(devices, functools.partial(result_and_gradients, by_cudnn)))
    found, wanted = run(placed, gradient), result_and_gradients(attend_plain, arrays, gradient)
    check_close(found, wanted[: len(found)])


WIDE = {'size': 'base', 'patch_size': 16, 'width': 768, 'heads': 12, 'hidden': 3072, 'depth': 3}
BIG = {'compute_dtype': 'bfloat16', 'batch_size': 8, 'data': {'image_size': 224}}
MASK = {'patches': 75, 'min_block': 16}
PRETRAIN = BIG | {'model': WIDE | {'unroll': 3}, 'mask': MASK}
SCANNED = BIG | {'model': WIDE | {'unroll': 1, 'remat': True}, 'mask': MASK}
WIDE3 = WIDE | {'unroll': 3}


@pytest.mark.parametrize(
    ('settings', 'tokens', 'calls'),
    [
        (tiny.settings('', **PRETRAIN), 198, 6),
        (tiny.settings('', **SCANNED), 198, 3),  # and anew in the backward pass
        (tiny.settings('', **PRETRAIN | {'mesh': {'data': 1, 'fsdp': 4}}), 198, 6),
        (tiny.settings('', **PRETRAIN | {'mesh': {'data': 2, 'tensor': 2}}), 198, 6),
        (tiny.settings('', **SCANNED | {'mesh': {'data': 2, 'fsdp': 2}}), 198, 3),
        (tiny.settings('', **PRETRAIN | {'accumulate_steps': 2, 'mesh': {'fsdp': 2}}), 198, 6),
        (tiny.classify_settings(**BIG | {'model': WIDE3}), 198, 6),
        (tiny.classify_settings(**BIG | {'model': WIDE3, 'data': {'image_size': 384}}), 578, 6),
        (tiny.segment_settings(**BIG | {'model': WIDE3, 'data': {'image_size': 512}}), 1026, 6),
        (tiny.settings('', **PRETRAIN | {'model': WIDE3 | {'positions': 'absolute'}}), 198, 6),
    ],
    ids=[
        'pretrain',
        'scan',
        'fsdp',
        'tensor',
        'scan-fsdp',
        'parts',
        '224',
        '384',
        '512',
        'vanilla',
    ],
)
def test_lowers(settings, tokens, calls, monkeypatch):
    """For CUDA, on any machine: each attention is cuDNN's, and no logits are left in memory."""
    counts = lambda: jax.sharding.get_abstract_mesh().axis_names == (platform.NONE,)
    for module in (attention, platform):
        monkeypatch.setattr(module, 'target_platform', lambda: platform.NONE if counts() else 'gpu')
    monkeypatch.setattr(CUDNN, lambda: 91_000)
    config = task_config(settings)
    count = np.prod([size for size in dataclasses.astuple(config.mesh) if size > 0])
    devices = jax.devices()[: max(1, count)] if config.mesh.data > 0 else jax.devices()[:4]
    program = step_programs(config, make_mesh(config.mesh, devices))['step']
    text = program.function.trace(*program.inputs).lower(lowering_platforms=('cuda',)).as_text()
    assert len(re.findall(r'custom_call @__cudnn\$fmha', text)) == calls
    assert re.search(rf'tensor<\d+x{tokens}x768xbf16>', text)
    assert 'custom_call @LayoutConstraint' in text
    assert not re.search(rf'tensor<\d+x\d+x{tokens}x{tokens}xf32>', text)


def choice(setting='auto', dtype='bfloat16', tokens=197, width=64, biased=True):
    return attention.choose(setting, dtype=dtype, tokens=tokens, width=width, biased=biased)


def test_what_auto_takes(monkeypatch):
    assert choice() == choice('plain') == 'plain'
    monkeypatch.setattr(platform, 'target_platform', lambda: 'gpu')
    assert choice() == choice('cudnn') == choice(width=8) == choice(width=128) == 'cudnn'
    assert choice('plain') == choice(dtype='float32') == choice(width=36) == 'plain'
    assert choice(width=136) == 'plain'
    monkeypatch.setattr(attention, 'is_deterministic', lambda: True)
    assert (choice(), choice(biased=False)) == ('plain', 'cudnn')


class Gpu:
    def __init__(self, capability):
        self.compute_capability, self.device_kind = capability, 'a GPU'


@pytest.mark.parametrize(
    ('capability', 'taken'),
    [('9.0', True), ('8.0', True), ('10.3', True), ('7.5', False), ('gfx942', False)],
)
def test_which_gpus(capability, taken, monkeypatch):
    monkeypatch.setattr(platform, 'target_platform', lambda: 'gpu')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu(capability)])
    assert choice() == ('cudnn' if taken else 'plain')
    if not taken:
        with pytest.raises(RequestError, match=f'a GPU of {capability}: run it on one'):
            choice('cudnn')


@pytest.mark.parametrize(
    ('on', 'asked', 'message'),
    [
        ('cpu', {'setting': 'cudnn'}, "=cudnn: cuDNN is for NVIDIA's GPUs, this is a cpu"),
        ('cpu', {'setting': 'pallas'}, '=pallas: these kernels are for TPUs, this is a cpu'),
        ('gpu', {'setting': 'cudnn', 'dtype': 'float32'}, 'set config.compute_dtype=bfloat16'),
        ('gpu', {'setting': 'cudnn', 'width': 36}, 'heads are 36 wide, cuDNN takes multiples of 8'),
        ('gpu', {'setting': 'cudnn', 'width': 256}, 'heads are 256 wide'),
        ('tpu', {'setting': 'pallas', 'width': 24}, 'heads are 24 wide, no multiple of 16'),
        ('tpu', {'setting': 'pallas', 'tokens': 1025}, '1025 tokens are more than 640'),
    ],
)
def test_what_is_refused(on, asked, message, monkeypatch):
    for module in (attention, kernels, platform):
        monkeypatch.setattr(module, 'target_platform', lambda: on)
    with pytest.raises(RequestError, match=re.escape(message)):
        choice(**asked)
