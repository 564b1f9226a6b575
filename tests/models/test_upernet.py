"""UPerNet on BEiT against Hugging Face's segmenter and the official one in torch.

float32: 1e-4 a model, in training too; the layers have tests of their own.
"""

import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from beit_jax.errors import RequestError
from beit_jax.models.architecture import abstract, in_words
from beit_jax.models.convolutions import STATISTICS
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.upernet import Segmenter, UperNetConfig, _classify
from beit_jax.settings.mapping import from_mapping
from beit_jax.weights.pytorch import names
from tests import torch_segmenters
from tests.models.layouts import largest, our_order, torch_order
from tests.models.test_parity_transformers import without_resampling

SIZES = {'width': 22, 'depth': 4, 'heads': 2, 'hidden': 37, 'patch_size': 3}
CLASSES, AUXILIARY, BATCH = 7, 5, 3


def params_of(state: dict, dialect: str, get=lambda tensor: tensor.numpy()) -> dict:
    """Our nested parameters of a state dict."""
    tensors = names.split_qkv({name: get(tensor) for name, tensor in state.items()})
    flat = {}
    for name, array in tensors.items():
        if not name.endswith((names.COUNTER, names.INDEX)):
            path = names.to_path(name, dialect, 'pixels')
            assert path, name
            flat[path] = names.from_torch(path, array)
    return traverse_util.unflatten_dict(flat, sep='/')


def make_ours(positions, grid, taps, unroll=1, depth=4, **options):
    """(the graphdef, the shapes of the parameters)."""
    sizes = SIZES | {'depth': depth, 'unroll': unroll}
    encoder = EncoderConfig(**sizes, positions=positions, drop_path=0.0, norm_eps=1e-6)
    head = UperNetConfig(taps=taps, auxiliary_channels=AUXILIARY, dropout=0.0, **options)
    build = lambda: Segmenter(encoder, grid, CLASSES, head=head, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(nnx.eval_shape(build))
    return graphdef, jax.tree.map(jnp.shape, nnx.to_pure_dict(state))


def pixels(grid, seed=1):
    shape = BATCH, 3 * grid[0], 3 * grid[1], 3
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(graphdef, params, images_BHWC):
    return jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))(params, images_BHWC)


@pytest.mark.parametrize(
    'positions, grid',
    [
        pytest.param('layer_bias', (5, 5), id='layer_bias'),
        pytest.param('shared_bias', (3, 7), id='shared_bias-3x7'),
        pytest.param('absolute', (11, 2), id='absolute-11x2', marks=pytest.mark.slow),
    ],
)
def test_logits_of_transformers(positions, grid, monkeypatch, tmp_path):
    taps = (-1, 0, 1, 2)  # it cannot tap the last block
    if grid[0] != grid[1]:
        without_resampling(monkeypatch)
    theirs = torch_segmenters.make_transformers_segmenter(
        positions,
        **SIZES,
        side=(3 * grid[0], 3 * grid[1]),
        classes=CLASSES,
        taps=taps,
        auxiliary=AUXILIARY,
        eps=1e-6,
    )
    theirs.save_pretrained(tmp_path)
    params = params_of(safetensors.torch.load_file(tmp_path / 'model.safetensors'), 'huggingface')
    graphdef, shapes = make_ours(positions, grid, taps, unroll=1 if grid == (3, 7) else 4)
    assert jax.tree.map(np.shape, params) == shapes
    images_BHWC, seen = pixels(grid), []
    theirs.auxiliary_head.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        expected = theirs(torch_order(images_BHWC)).logits
    logits, auxiliary, statistics = run(graphdef, params, images_BHWC)
    assert largest(logits, our_order(expected)) < 1e-4 and statistics == {}
    assert largest(auxiliary, our_order(seen[0])) < 1e-4


@pytest.mark.slow
def test_base():
    """The official configuration on 7 x 6 patches."""
    theirs = torch_segmenters.make_official_segmenter(
        'layer_bias',
        width=768,
        depth=12,
        heads=12,
        hidden=3072,
        side=(112, 96),
        classes=150,
        taps=(3, 5, 7, 11),
        auxiliary=256,
    )
    encoder = EncoderConfig(positions='layer_bias')
    ours = nnx.eval_shape(lambda: Segmenter(encoder, (7, 6), 150, rngs=nnx.Rngs(0)))
    params = params_of(theirs.state_dict(), 'unilm')
    images_BHWC = np.random.default_rng(1).normal(size=(2, 112, 96, 3)).astype(np.float32)
    logits, auxiliary, _ = run(nnx.graphdef(ours), params, images_BHWC)
    with torch.no_grad():
        expected, auxiliary_expected = theirs(torch_order(images_BHWC))
    assert largest(logits, our_order(expected)) < 1e-4
    assert largest(auxiliary, our_order(auxiliary_expected)) < 1e-4


@pytest.mark.parametrize(
    'positions, grid, unroll',
    [('layer_bias', (5, 3), 3), pytest.param('absolute', (2, 5), 1, marks=pytest.mark.slow)],
)
def test_training_like_the_official_one(positions, grid, unroll):
    """Logits, all gradients and all running statistics of a step; the last block is tapped."""
    taps, scales = (0, 1, 1, 2), (2, 3)
    theirs = torch_segmenters.make_official_segmenter(
        positions,
        **SIZES | {'depth': 3},
        side=(3 * grid[0], 3 * grid[1]),
        classes=CLASSES,
        taps=taps,
        auxiliary=AUXILIARY,
        channels=13,
        scales=scales,
    )
    copied = {name: value.clone() for name, value in theirs.state_dict().items()}
    params, options = params_of(copied, 'unilm'), {'channels': 13, 'pool_scales': scales}
    graphdef, shapes = make_ours(positions, grid, taps, unroll, depth=3, **options)
    assert jax.tree.map(np.shape, params) == shapes
    images_BHWC, rng = pixels(grid), np.random.default_rng(2)
    weights = rng.normal(size=(BATCH, 4 * grid[0], 4 * grid[1], CLASSES)).astype(np.float32) / 100
    auxiliary_weights = rng.normal(size=(BATCH, *grid, CLASSES)).astype(np.float32) / 10

    def loss(params):
        logits, auxiliary, statistics = nnx.merge(graphdef, params)(images_BHWC, train=True)
        loss = jnp.sum(logits * weights) + jnp.sum(auxiliary * auxiliary_weights)
        return loss, (logits, auxiliary, statistics)

    differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (logits, auxiliary, statistics)), gradients = differentiated(params)
    theirs.train()
    expected, auxiliary_expected = theirs(torch_order(images_BHWC))
    weighted = (expected * torch_order(weights)).sum()
    weighted += (auxiliary_expected * torch_order(auxiliary_weights)).sum()
    weighted.backward()
    assert largest(logits, our_order(expected)) < 1e-4
    assert largest(auxiliary, our_order(auxiliary_expected)) < 1e-4
    flat = traverse_util.flatten_dict(statistics, sep='/')
    assert len(flat) == 2 * 12
    after = traverse_util.flatten_dict(params_of(theirs.state_dict(), 'unilm'), sep='/')
    for path, value in flat.items():
        np.testing.assert_allclose(value, after[path], rtol=1e-4, atol=1e-5, err_msg=path)
    by_name = params_of(dict(theirs.named_parameters()), 'unilm', lambda value: value.grad.numpy())
    theirs_flat = traverse_util.flatten_dict(by_name, sep='/')
    for path, gradient in traverse_util.flatten_dict(gradients, sep='/').items():
        if path.endswith(STATISTICS):
            assert not gradient.any()
        else:
            wanted = theirs_flat[path]
            atol = 1e-4 * max(1, np.abs(wanted).max())
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=atol, err_msg=path)


def test_dropout_takes_whole_channels():
    """Each image its own, by its key alone; what is kept is scaled up.

    The two classifiers draw apart, and without keys nothing is dropped.
    """
    x = np.random.default_rng(0).normal(1, 0.1, size=(BATCH, 3, 2, 101)).astype(np.float32)
    x[2] = x[0]
    keys = jax.random.split(jax.random.key(0), BATCH)
    drop = functools.partial(_classify, lambda x: x, x)
    dropped = np.asarray(drop(keys, 0.3, 1))
    kept = np.any(dropped != 0, axis=(1, 2))
    np.testing.assert_allclose(dropped, x * kept[:, None, None] / 0.7, rtol=1e-5)
    assert 0.6 < kept.mean() < 0.8
    assert (kept[0] != kept[1]).any() and (kept[0] != kept[2]).any()
    assert (dropped != np.asarray(drop(keys, 0.3, 2))).any()
    np.testing.assert_array_equal(drop(keys[::-1], 0.3, 1)[2], dropped[0])
    np.testing.assert_array_equal(drop(None, 0.3, 1), x)
    np.testing.assert_array_equal(drop(keys, 0.0, 1), x)


def test_what_a_head_can_be():
    encoders = {depth: EncoderConfig(size='tiny', depth=depth) for depth in (2, 4, 12, 24)}
    taps = {depth: UperNetConfig().fitted(encoder).taps for depth, encoder in encoders.items()}
    assert taps == {2: (0, 0, 0, 1), 4: (0, 1, 2, 3), 12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
    assert UperNetConfig().fitted(EncoderConfig()).channels == 768
    for options, message in (
        ({'taps': (1, 2)}, 'has 2 blocks'),
        ({'dropout': 1}, 'dropout is 1'),
        ({'auxiliary_tap': 4}, r'auxiliary_tap is 4: it takes a number in \[0, 3\]'),
        ({'pool_scales': (0, 1)}, r'pool_scales\[0\] is 0'),
        ({'norm_eps': 0}, r'norm_eps is 0: it takes a number in \(0, 1\]'),
    ):
        with pytest.raises(RequestError, match=message):
            from_mapping(UperNetConfig, options, 'head.')
    with pytest.raises(RequestError, match='the encoder has blocks 0 to 11'):
        UperNetConfig(taps=(3, 5, 7, 12)).fitted(EncoderConfig())
    with pytest.raises(RequestError, match='1 x 5 patches are too few'):
        make_ours('absolute', (1, 5), ())


def test_description():
    encoder = EncoderConfig(**SIZES, positions='layer_bias')
    described = {
        'architecture': 'beit_segmenter',
        **vars(encoder),
        'grid': [5, 5],
        'num_classes': 150,
        'head': vars(UperNetConfig()),
        'image_size': 15,
        'crop': 1.0,
        'mean': [0.5] * 3,
        'std': [0.5] * 3,
    }
    assert in_words(described)[0] == (
        'segmenter of 150 classes: UPerNet of 22 channels on blocks 0, 1, 2, 3 (from 0), pools 1, '
        '2, 3, 6; auxiliary head of 256'
    )
    flat = traverse_util.flatten_dict(abstract(described)[1], sep='/')
    assert flat['head/fuse/conv/kernel'].shape == (3, 3, 88, 22)
    assert flat['head/auxiliary/classifier/kernel'].shape == (1, 1, 256, 150)
