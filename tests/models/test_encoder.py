"""The encoder: however it is run it computes the same, and nothing that is hidden can be seen."""

import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from beit_jax.errors import RequestError
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.heads import MaskedImageModel
from beit_jax.settings.mapping import from_mapping

GRID, PATCH, VOCABULARY, BATCH, SLOTS = (3, 5), 7, 37, 11, 4
CONFIG = EncoderConfig(width=39, depth=3, heads=3, hidden=53, patch_size=PATCH, drop_path=0.4)


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    images_BHWC = rng.normal(size=(BATCH, GRID[0] * PATCH, GRID[1] * PATCH, 3)).astype(np.float32)
    slots_BK = np.stack([np.sort(rng.permutation(15)[:SLOTS]) for _ in range(BATCH)])
    mask_BP = np.zeros((BATCH, 15), bool)
    np.put_along_axis(mask_BP, slots_BK, True, axis=1)
    return images_BHWC, mask_BP, slots_BK


def filled(build):
    """A module whose parameters are all far from zero, so that each has a part in the output.

    They are NumPy arrays, so that a trace may make it.
    """
    module, rng = nnx.eval_shape(build), np.random.default_rng(1)

    def draw(path, x):
        mean = 1.0 if "'scale'" in str(path) else 0.0
        return rng.normal(mean, 0.2, x.shape).astype(x.dtype)

    nnx.update(module, jax.tree.map_with_path(draw, nnx.state(module)))
    return module


@functools.cache
def model(dtype=jnp.float32, **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return filled(lambda: MaskedImageModel(config, GRID, VOCABULARY, dtype=dtype, rngs=nnx.Rngs(0)))


def test_scan_loop_and_remat_agree():
    """However the blocks are run, loss and gradients are the same, stochastic depth included."""
    images_BHWC, mask_BP, slots_BK = inputs()
    keys_B = jax.random.split(jax.random.key(2), BATCH)
    tokens_BK = np.random.default_rng(3).integers(0, VOCABULARY, slots_BK.shape)
    targets_BKV = jax.nn.one_hot(tokens_BK, VOCABULARY)
    params = nnx.state(model())

    def loss_and_gradients(**settings):
        graphdef = nnx.graphdef(model(**settings))

        def loss(params):
            logits_BKV = nnx.merge(graphdef, params)(images_BHWC, mask_BP, slots_BK, keys_B=keys_B)
            return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits_BKV) * targets_BKV, axis=-1))

        return jax.jit(jax.value_and_grad(loss))(params)

    loss, gradients = loss_and_gradients(unroll=1)
    norm = math.sqrt(sum(np.sum(gradient**2) for gradient in jax.tree.leaves(gradients)))
    assert all(np.linalg.norm(gradient) > 1e-4 * norm for gradient in jax.tree.leaves(gradients))
    for settings in (
        {'unroll': 3},
        {'unroll': 2, 'remat': True},
        {'unroll': 3, 'remat': True, 'remat_policy': 'dots'},
    ):
        other_loss, other_gradients = loss_and_gradients(**settings)
        assert abs(other_loss / loss - 1) < 1e-6, settings
        leaves = jax.tree.leaves_with_path(gradients)
        for (path, gradient), other in zip(leaves, jax.tree.leaves(other_gradients), strict=True):
            assert np.linalg.norm(other - gradient) < 1e-6 * norm, (settings, path)


@pytest.mark.parametrize('positions', ['absolute', 'shared_bias', 'layer_bias'])
def test_masked_pixels_cannot_be_seen(positions):
    """Bit for bit the same output, whatever stands in a hidden patch.

    transformers#13235 ignored the mask silently.
    """
    images_BHWC, mask_BP, slots_BK = inputs()
    run = jax.jit(model(positions=positions).__call__)
    logits_BKV = run(images_BHWC, mask_BP, slots_BK)
    hidden_BHW = mask_BP.reshape(BATCH, *GRID).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    hidden_BHW1 = hidden_BHW[..., None]
    for other in (-images_BHWC, np.nan, np.inf):
        changed_BHWC = np.where(hidden_BHW1, other, images_BHWC).astype(np.float32)
        np.testing.assert_array_equal(run(changed_BHWC, mask_BP, slots_BK), logits_BKV)
    seen_BHWC = np.where(hidden_BHW1, images_BHWC, -images_BHWC)
    difference_BKV = np.abs(run(seen_BHWC, mask_BP, slots_BK) - logits_BKV)
    assert difference_BKV.min(axis=(1, 2)).max() > 0
    none_BP = np.zeros_like(mask_BP)
    assert np.abs(run(images_BHWC, none_BP, slots_BK) - logits_BKV).max() > 0.1


def test_size_that_patches_do_not_divide():
    config = EncoderConfig(patch_size=7)
    assert config.grid(21, 35) == (3, 5)
    for height, width in ((22, 35), (21, 34)):
        message = f'{height} x {width} cannot be cut into patches of 7'
        with pytest.raises(RequestError, match=message):
            config.grid(height, width)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'size': 'huge'}, 'huge'),
        ({'positions': 'shared'}, 'Did you mean shared_bias'),
        ({'remat_policy': 'all'}, 'nothing, dots'),
        ({'width': 100, 'heads': 7}, 'multiple'),
        ({'drop_path': 1.0}, 'drop_path'),
        ({'unroll': 0}, 'unroll'),
        ({'patch_size': 0}, 'patch_size'),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        from_mapping(EncoderConfig, settings, 'model.')


def test_rates_of_stochastic_depth():
    """Linear from 0 to the rate, and what is kept is scaled so that the mean stays.

    Six binomial tests at 1e-6.
    """
    keys_B = jax.random.split(jax.random.key(0), 20_000)
    encoder = model().encoder
    keep_L2B = np.asarray(encoder._draw_drop_path(keys_B))
    for layer, keep_2B in enumerate(keep_L2B):
        rate = layer * 0.4 / (CONFIG.depth - 1)
        expected = [0, 1 / (1 - rate)] if rate else [1]
        np.testing.assert_allclose(np.unique(keep_2B), expected, rtol=1e-6)
        for keep_B in keep_2B:
            dropped = int((keep_B == 0).sum())
            assert scipy.stats.binomtest(dropped, len(keep_B), rate).pvalue > 1e-6, layer
    dropped = (keep_L2B[1:] == 0).reshape(-1, len(keys_B))
    # each branch for itself
    assert np.abs(np.corrcoef(dropped) - np.eye(len(dropped))).max() < 5 / math.sqrt(len(keys_B))
    # an image's key decides alone
    np.testing.assert_array_equal(encoder._draw_drop_path(keys_B[3:8]), keep_L2B[..., 3:8])


def test_stochastic_depth_in_the_model():
    images_BHWC, mask_BP, slots_BK = inputs()
    keys_B = jax.random.split(jax.random.key(5), BATCH)
    run = jax.jit(lambda keys_B: model()(images_BHWC, mask_BP, slots_BK, keys_B=keys_B))
    whole, dropped = np.asarray(run(None)), np.asarray(run(keys_B))
    np.testing.assert_array_equal(run(keys_B), dropped)
    assert model().encoder._draw_drop_path(None) is None
    assert model(drop_path=0.0).encoder._draw_drop_path(keys_B) is None
    assert np.abs(dropped - whole).max(axis=(1, 2)).min() > 0.01
    # By hand: a branch is multiplied by 0 or by 1 / (1 - rate).
    encoder, block = model().encoder, list(model().encoder.blocks.values())[-1]
    rng = np.random.default_rng(0)
    x_BND = jnp.asarray(rng.normal(size=(BATCH, 16, CONFIG.width)), jnp.float32)
    keep_2B, bias_HNN = jnp.asarray(encoder._draw_drop_path(keys_B)[-1]), encoder.position_bias(16)
    np.testing.assert_allclose(np.unique(keep_2B), [0, 1 / (1 - 0.4)])

    @jax.jit
    def by_hand():
        keep1_B11, keep2_B11 = keep_2B[..., None, None]
        branch_BND = block.attention(block.norm1(x_BND), bias_HNN) * block.scale1[...]
        attended_BND = branch_BND * keep1_B11 + x_BND
        branch_BND = block.mlp(block.norm2(attended_BND)) * block.scale2[...]
        return branch_BND * keep2_B11 + attended_BND

    found = jax.jit(block.__call__)(x_BND, bias_HNN, keep_2B)
    np.testing.assert_allclose(found, by_hand(), atol=1e-5)


@pytest.mark.parametrize('unroll', [1, 3])
def test_every_layer(unroll):
    images_BHWC, mask_BP, _ = inputs()
    encoder = model(unroll=unroll).encoder

    @jax.jit
    def run():
        layers_LBND = encoder(images_BHWC, mask_BP, every_layer=lambda x_BND: x_BND)
        return layers_LBND, encoder(images_BHWC, mask_BP)

    layers_LBND, last_BND = run()
    assert layers_LBND.shape == (CONFIG.depth, BATCH, 16, CONFIG.width)
    np.testing.assert_array_equal(layers_LBND[-1], last_BND)
    bias_HNN, blocks = encoder.position_bias(16), list(encoder.blocks.values())
    for layer in range(1, CONFIG.depth):
        expected_BND = blocks[layer](layers_LBND[layer - 1], bias_HNN)
        np.testing.assert_allclose(layers_LBND[layer], expected_BND, atol=1e-5)


@pytest.mark.parametrize('positions', ['absolute', 'shared_bias', 'layer_bias'])
def test_bfloat16(positions):
    """Products and residual stream in bfloat16; parameters, gradients and logits in float32."""
    images_BHWC, mask_BP, slots_BK = inputs()
    keys_B = jax.random.split(jax.random.key(0), BATCH)
    half, full = model(jnp.bfloat16, positions=positions), model(positions=positions)
    graphdef, params = nnx.split(half)

    def run(params):
        half = nnx.merge(graphdef, params)
        logits_BKV = half(images_BHWC, mask_BP, slots_BK)
        x_BND = half.encoder(images_BHWC, mask_BP, keys_B=keys_B)
        return jnp.mean(logits_BKV**2), (logits_BKV, x_BND)

    gradients, (logits_BKV, x_BND) = jax.eval_shape(jax.grad(run, has_aux=True), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, gradients)))
    assert logits_BKV.dtype == jnp.float32 and x_BND.dtype == jnp.bfloat16
    _, (logits_BKV, _) = jax.jit(run)(params)
    expected_BKV = jax.jit(full.__call__)(images_BHWC, mask_BP, slots_BK)
    error = float(jnp.std(logits_BKV - expected_BKV) / jnp.std(expected_BKV))
    assert 1e-4 < error < 0.03, error  # bfloat16 has 8 bits: rounded, and no more than rounded


def test_encoder_takes_any_grid():
    """Turning picture and bias table by 90 degrees turns the output: rows are no columns."""
    config = dataclasses.replace(CONFIG, patch_size=1, depth=2)
    encoder = filled(lambda: Encoder(config, (3, 5), rngs=nnx.Rngs(0)))
    turned = filled(lambda: Encoder(config, (5, 3), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 9, 3)).astype(np.float32)
    rest = rng.normal(size=(3, 3)).astype(np.float32)
    turned_table = table.transpose(1, 0, 2)
    encoder.position_bias.table[...] = jnp.concatenate([table.reshape(45, 3), rest])
    turned.position_bias.table[...] = jnp.concatenate([turned_table.reshape(45, 3), rest])
    images_BHWC = rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
    expected_BND = np.asarray(jax.jit(encoder.__call__)(images_BHWC))
    actual_BND = np.asarray(jax.jit(turned.__call__)(images_BHWC.transpose(0, 2, 1, 3)))
    actual_BhwD = actual_BND[:, 1:].reshape(2, 5, 3, -1).transpose(0, 2, 1, 3)
    expected_BhwD = expected_BND[:, 1:].reshape(2, 3, 5, -1)
    np.testing.assert_allclose(actual_BhwD, expected_BhwD, atol=1e-5)
