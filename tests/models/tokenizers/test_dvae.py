"""Our dVAE against the package dall_e with the same random weights, 1e-4 in float32."""

import dataclasses
import functools
import json
import math
import re

import dall_e
from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from beit_jax.errors import RequestError
from beit_jax.models import tokenizers
from beit_jax.models.tokenizers import dvae, fused_block, kmeans, make_tokenizer
from beit_jax.models.tokenizers.dvae import (
    DVAE,
    Config,
    DVAEDecoder,
    DVAEEncoder,
    _conv,
    map_pixels,
    unmap_pixels,
)
from beit_jax.settings.mapping import from_mapping
from beit_jax.weights.tokenizer import load_tokenizer, save_tokenizer

TINY = Config(groups=3, blocks=1, width=12, decoder_input=7, vocabulary=53)
# dall_e -> ours, in this order
RENAMED = [
    ('blocks.', ''),
    ('group_', 'groups.'),
    ('block_', ''),
    ('res_path.conv_', 'convs.'),
    ('id_path', 'shortcut'),
    ('output.conv', 'output'),
    ('.', '/'),
]


def abstract(cls, config, dtype=jnp.float32):
    """A module of shapes: what is not copied stays without a value."""
    return nnx.eval_shape(lambda: cls(config, dtype=dtype, rngs=nnx.Rngs(0)))


def copy_weights(theirs, ours):
    """dall_e's blocks.group_1.block_2.res_path.conv_3.w is our groups/1/2/convs/3/kernel."""
    flat = {}
    torch.manual_seed(0)
    for name, value in theirs.named_parameters():
        path = name.removesuffix('w').removesuffix('b')
        for old, new in RENAMED:
            path = path.replace(old, new)
        with torch.no_grad():
            value.normal_(0, 0.2) if value.ndim == 1 else value.mul_(1.7)
        array = value.detach().numpy()
        if value.ndim == 1:
            flat[path + 'bias'] = jnp.asarray(array)
        else:
            flat[path + 'kernel'] = jnp.asarray(array.transpose(2, 3, 1, 0))
    expected = {'/'.join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(ours))}
    assert expected == {name: value.shape for name, value in flat.items()}
    nnx.update(ours, traverse_util.unflatten_dict(flat, sep='/'))
    return ours


def cut(theirs, resampling, output):
    """The fourth group goes, and the resampling before it.

    dall_e always builds four; `group_count` sets the gain alone.
    """
    del theirs.blocks.group_4
    delattr(theirs.blocks.group_3, resampling)
    theirs.blocks.output.conv = output


def by_torch(theirs, x_BHWC):
    with torch.no_grad():
        return theirs(torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(('groups', 'fused'), [(3, False), (4, False), (3, True), (4, True)])
def test_encoder(groups, fused, monkeypatch):
    monkeypatch.setattr(fused_block, 'LANES', 32)  # twice the channels of a hidden layer here
    monkeypatch.setattr(fused_block, '_ROWS', 8)
    torch.manual_seed(0)
    monkeypatch.setattr(dall_e.Encoder, 'group_count', groups)
    theirs = dall_e.Encoder(n_hid=64, n_blk_per_group=2, vocab_size=521)
    if groups == 3:
        cut(theirs, 'pool', dall_e.utils.Conv2d(256, 521, 1))
    config = Config(groups=groups, width=64, vocabulary=521)
    ours = copy_weights(theirs, abstract(DVAEEncoder, config))
    images_BHWC = np.random.default_rng(0).random((3, 40, 24, 3), np.float32)
    expected = by_torch(theirs, images_BHWC)
    logits = np.asarray(jax.jit(functools.partial(ours.__call__, fused=fused))(images_BHWC))
    difference = np.abs(logits - expected).max()
    assert logits.shape == (3, 40 * 2 // 2**groups, 24 * 2 // 2**groups, 521)
    assert logits.std() > 0.3 and difference < 1e-4, difference
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    assert len(np.unique(logits.argmax(-1))) > 1


@pytest.mark.parametrize('groups', [3, 4])
def test_decoder(groups, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(dall_e.Decoder, 'group_count', groups)
    theirs = dall_e.Decoder(n_init=31, n_hid=64, n_blk_per_group=2, vocab_size=521)
    if groups == 3:
        cut(theirs, 'upsample', dall_e.utils.Conv2d(128, 6, 1))
    # dall_e narrows from 8 widths down: without its last group it is twice as wide
    width = 64 if groups == 4 else 128
    config = Config(groups=groups, width=width, decoder_input=31, vocabulary=521)
    ours = copy_weights(theirs, abstract(DVAEDecoder, config))
    codes_BhwV = np.random.default_rng(0).dirichlet(np.full(521, 0.05), (3, 5, 3))
    codes_BhwV = codes_BhwV.astype(np.float32)
    pictures = np.asarray(jax.jit(ours.__call__)(codes_BhwV))
    difference = np.abs(pictures - by_torch(theirs, codes_BhwV)).max()
    assert pictures.shape == (3, 5 * 2 ** (groups - 1), 3 * 2 ** (groups - 1), 6)
    assert pictures.std() > 0.1 and difference < 1e-4, difference


@pytest.mark.parametrize(
    'ours, theirs, count',
    [(DVAEEncoder, dall_e.Encoder, 53_786_240), (DVAEDecoder, dall_e.Decoder, 43_829_766)],
)
def test_size_of_the_published_model(ours, theirs, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(ours, Config())))) == count
    assert sum(value.numel() for value in theirs(device=torch.device('meta')).parameters()) == count


def test_initial_values():
    """dall_e.utils.Conv2d: deviation 1 / sqrt(fan in), no bias."""
    for _, leaf in nnx.to_flat_state(nnx.state(abstract(DVAE, TINY))):
        expected = 'constant(0)' if leaf.ndim == 1 else 'normal(1 / sqrt(fan_in))'
        assert str(leaf.get_metadata()['initializer']) == expected
    convolution = _conv(3, 53, 7, dtype=jnp.float32, precision=None, rngs=nnx.Rngs(0))
    assert (convolution.bias[...] == 0).all()
    law = scipy.stats.norm(scale=1 / math.sqrt(7 * 7 * 3))
    assert scipy.stats.kstest(convolution.kernel[...].ravel(), law.cdf).pvalue > 1e-5


def test_bfloat16_leaves_the_last_layer_to_float32():
    encoder = abstract(DVAEEncoder, TINY, jnp.bfloat16)
    assert encoder.output.dtype == jnp.float32 and encoder.input.dtype == jnp.bfloat16
    images = jax.ShapeDtypeStruct((2, 12, 20, 3), jnp.float32)
    graphdef, state = nnx.split(encoder)
    logits = jax.eval_shape(lambda state, images: nnx.merge(graphdef, state)(images), state, images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state, logits)))
    assert logits.shape == (2, 3, 5, 53)


@pytest.mark.parametrize(
    ('platform', 'precision', 'products'),
    [
        ('gpu', 'tensorfloat32', 'HIGH'),  # XLA's name for TF32 there, for three products on a TPU
        ('gpu', 'bfloat16_3x', 'HIGHEST'),
        ('tpu', 'tensorfloat32', 'HIGH'),
        ('tpu', 'bfloat16_3x', 'HIGH'),
        ('cpu', 'tensorfloat32', 'HIGHEST'),
        ('cpu', 'bfloat16_3x', 'HIGHEST'),
        ('gpu', 'float32', 'HIGHEST'),
        ('gpu', 'float16', 'DEFAULT'),
        ('tpu', 'float16', 'HIGH'),
        ('cpu', 'float16', 'HIGHEST'),
        ('gpu', 'bfloat16', 'DEFAULT'),
    ],
)
@pytest.mark.parametrize('kind', [dvae, kmeans])
def test_precision_of_a_device(kind, platform, precision, products, monkeypatch):
    """Of all convolutions and products, as they are lowered."""
    for module in (tokenizers, dvae):
        monkeypatch.setattr(module, 'target_platform', lambda: platform)
    sizes = {'patch_size': 4, 'vocabulary': 53} if kind is kmeans else dataclasses.asdict(TINY)
    tokenizer = make_tokenizer(kind.__name__.rpartition('.')[2], sizes, 8, precision)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    text = jax.jit(tokenizer.encode).lower(tokenizer.abstract(), images).as_text()
    assert set(re.findall(r'\b(?:DEFAULT|HIGH|HIGHEST)\b', text)) == {products}
    small = {'float16': 'xf16>', 'bfloat16': 'xbf16>'} if platform == 'gpu' else {}
    assert set(re.findall(r'xb?f16>', text)) == set(filter(None, [small.get(precision)]))


def test_pixel_maps():
    images = np.linspace(-0.2, 1.2, 210, dtype=np.float32).reshape(2, 5, 7, 3)
    theirs = torch.from_numpy(images)
    np.testing.assert_allclose(map_pixels(images), dall_e.map_pixels(theirs), atol=1e-7)
    np.testing.assert_allclose(unmap_pixels(images), dall_e.unmap_pixels(theirs), atol=3e-7)
    np.testing.assert_allclose(unmap_pixels(map_pixels(images)), images.clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'groups': 0}, 'groups is 0'),
        ({'blocks': 0}, 'blocks is 0'),
        ({'decoder_input': 0}, 'decoder_input is 0'),
        ({'width': 6}, 'multiple of 4'),
        ({'vocabulary': 1}, r'\[2, 65536\]'),
        ({'vocabulary': 65537}, '65536'),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        from_mapping(Config, settings, 'architecture.')


@pytest.fixture
def saved(tmp_path):
    """(directory, params) of a tokenizer on disk."""
    rng, shapes = np.random.default_rng(0), nnx.to_pure_dict(nnx.state(abstract(DVAE, TINY)))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.4, shapes)
    save_tokenizer(tmp_path / 'a' / 'tokenizer', 'dvae', TINY, 20, params)
    return tmp_path / 'a' / 'tokenizer', params


def test_tokenizer_on_disk(saved):
    directory, params = saved
    tokenizer, loaded = load_tokenizer(str(directory), decoder=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.leaves(loaded)[0].dtype == np.float32
    assert (tokenizer.config, tokenizer.image_size) == (TINY, 20)
    assert (tokenizer.vocabulary, tokenizer.factor) == (53, 4)


def test_encode_and_decode(saved):
    tokenizer, params = load_tokenizer(str(saved[0]), decoder=True)
    images_BSS3 = np.random.default_rng(0).random((3, 20, 20, 3), np.float32)
    ids_BP = jax.jit(tokenizer.encode)(params, images_BSS3)
    assert ids_BP.shape == (3, 25) and ids_BP.dtype == jnp.int32
    whole = abstract(DVAE, TINY)
    nnx.update(whole, jax.tree.map(jnp.asarray, params))
    logits_BhwV = jax.jit(whole.encoder.__call__)(0.8 * images_BSS3 + 0.1)
    np.testing.assert_array_equal(ids_BP.reshape(3, 5, 5), logits_BhwV.argmax(-1))
    pictures = jax.jit(tokenizer.decode)(params, ids_BP)
    assert pictures.shape == images_BSS3.shape and pictures.dtype == jnp.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
    codes_BhwV = np.eye(53, dtype=np.float32)[ids_BP].reshape(3, 5, 5, 53)
    location = jax.jit(whole.decoder.__call__)(codes_BhwV)[..., :3]
    expected = (torch.tensor(np.asarray(location)).sigmoid() - 0.1) / 0.8
    np.testing.assert_allclose(pictures, expected.clip(0, 1), atol=1e-5)


def refused(directory, match):
    with pytest.raises(RequestError, match=match):
        load_tokenizer(str(directory))


def test_missing_or_damaged_weights(saved):
    directory, _ = saved
    weights = directory / 'tokenizer.safetensors'
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:5], b''):
        weights.write_bytes(damaged)
        refused(directory, 'tokenizer.safetensors cannot be read.*damaged')
    weights.unlink()
    refused(directory, 'there is no tokenizer.safetensors')
    refused(directory / 'elsewhere', 'elsewhere: there is no tokenizer.safetensors')


def test_description_of_another_tokenizer(saved):
    directory, _ = saved
    description = directory / 'tokenizer.json'
    settings = json.loads(description.read_text())
    for architecture, match in (
        (
            {'vocabulary': 59},
            'does not fit tokenizer.json: decoder/input/kernel, encoder/output/bias, '
            'encoder/output/kernel',
        ),
        ({'blocks': 2}, 'does not fit.*groups/1/2.* ...'),
        ({'vocab': 53}, 'architecture.vocab is not a setting. Did you mean vocabulary'),
    ):
        changed = settings | {'architecture': settings['architecture'] | architecture}
        description.write_text(json.dumps(changed))
        refused(directory, match)
    description.unlink()
    refused(directory, 'there is no tokenizer.json')


@pytest.mark.parametrize(
    'text', ['', '{"kind": "dv', '[]', '{"kind": "dvae"}', '{"architecture": 3, "image_size": 20}']
)
def test_damaged_description(saved, text):
    (saved[0] / 'tokenizer.json').write_text(text)
    refused(saved[0], 'tokenizer.json')
