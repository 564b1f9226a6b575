import dataclasses
import functools
import math
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from beit_jax.errors import RequestError
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.heads import MaskedImageModel
from beit_jax.models.layers import relative_position_index
from beit_jax.train.optimizer import parameter_table

GOLDEN = Path(__file__).parents[1] / 'golden'
GRID, PATCH, VOCABULARY, BATCH, SLOTS = (3, 5), 7, 37, 11, 4
CONFIG = EncoderConfig(width=39, depth=3, heads=3, hidden=53, patch_size=PATCH, drop_path=0.4)


def abstract(**settings):
    return nnx.state(
        nnx.eval_shape(
            lambda: MaskedImageModel(EncoderConfig(**settings), (14, 14), 8192, rngs=nnx.Rngs(0))
        )
    )


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    images_BHWC = rng.normal(size=(BATCH, GRID[0] * PATCH, GRID[1] * PATCH, 3)).astype(np.float32)
    slots_BK = np.stack([np.sort(rng.permutation(15)[:SLOTS]) for _ in range(BATCH)])
    mask_BP = np.zeros((BATCH, 15), bool)
    np.put_along_axis(mask_BP, slots_BK, True, axis=1)
    return images_BHWC, mask_BP, slots_BK


def filled(build):
    """A module whose parameters are all far from zero, so that each has a part in the output; NumPy
    arrays, so that a trace may make it."""
    module, rng = nnx.eval_shape(build), np.random.default_rng(1)
    nnx.update(
        module,
        jax.tree.map_with_path(
            lambda path, x: rng.normal(1.0 if "'scale'" in str(path) else 0.0, 0.2, x.shape).astype(
                x.dtype
            ),
            nnx.state(module),
        ),
    )
    return module


@functools.cache
def model(dtype=jnp.float32, **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return filled(lambda: MaskedImageModel(config, GRID, VOCABULARY, dtype=dtype, rngs=nnx.Rngs(0)))


# The table is the contract for names, shapes, initialisers and decay. After a wanted change, from
# the root of the repository: python -c "from tests.models.test_encoder import *; (GOLDEN /
# 'base_plus_pretrain.txt').write_text(parameter_table(abstract(), 1.0))"
def test_parameters_of_base_plus():
    table = parameter_table(abstract(), layer_decay=1.0)
    assert table.endswith('total 91,965,776\n')  # recipe.md
    assert table == (GOLDEN / 'base_plus_pretrain.txt').read_text()


def test_layer_decay_of_base_plus():
    """optim_factory.py: decay ** (13 - id); embeddings id 0, block i id i + 1, the rest 13."""
    scales = {
        row.split()[0]: float(row.split()[-1])
        for row in parameter_table(abstract(), layer_decay=0.65).splitlines()[:-1]
    }
    expected = {
        'encoder/cls_token': 13,
        'encoder/mask_token': 13,
        'encoder/patch_embedding/bias': 13,
        'encoder/patch_embedding/kernel': 13,
        'encoder/blocks/00/norm1/scale': 12,
        'encoder/blocks/00/attention/key/kernel': 12,
        'encoder/blocks/07/scale2': 5,
        'encoder/blocks/11/mlp/fc2/kernel': 1,
        'encoder/position_bias/table': 0,
        'head/norm/bias': 0,
        'head/projection/kernel': 0,
    }
    for path, power in expected.items():
        assert scales[path] == pytest.approx(0.65**power, rel=1e-5), path


@pytest.mark.parametrize(
    'positions, layer_scale', [('shared_bias', 0.1), ('layer_bias', 1e-5), ('absolute', 0.0)]
)
def test_initial_values(positions, layer_scale):
    """recipe.md, Initialisation: normal draws of deviation 0.02 cut at one deviation, so that
    0.0108 is left."""
    config = EncoderConfig(
        width=147,
        depth=3,
        heads=3,
        hidden=147,
        patch_size=PATCH,
        positions=positions,
        layer_scale=layer_scale,
    )
    flat = {
        '/'.join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(
            nnx.state(MaskedImageModel(config, GRID, 147, rngs=nnx.Rngs(0)))
        )
    }
    assert any('table' in name for name in flat) == (positions != 'absolute')
    assert ('encoder/position_embedding' in flat) == (positions == 'absolute')
    assert any('/scale1' in name for name in flat) == bool(layer_scale)
    for name, value in flat.items():
        assert value.dtype == np.float32, name
        last = name.split('/')[-1]
        if last in ('bias', 'table', 'scale', 'scale1', 'scale2'):
            assert (
                value == {'bias': 0, 'table': 0, 'scale': 1}.get(last, np.float32(layer_scale))
            ).all(), name
        else:
            layer = int(name.split('/')[2]) + 1 if 'attention/out' in name or 'fc2' in name else 0.5
            scaled, law = value * math.sqrt(2 * layer), scipy.stats.truncnorm(-1, 1, scale=0.02)
            assert np.abs(scaled).max() <= 0.02 * (1 + 1e-6), name
            assert scipy.stats.kstest(scaled.ravel()[:20_000], law.cdf).pvalue > 1e-5, name
            assert abs(law.std() - 0.0108) < 1e-4 and (
                value.size < 1000 or abs(scaled.std() - 0.0108) < 1e-3
            ), name


def test_scan_loop_and_remat_agree():
    """However the blocks are run, loss and gradients are the same, stochastic depth included."""
    images_BHWC, mask_BP, slots_BK = inputs()
    keys_B = jax.random.split(jax.random.key(2), BATCH)
    targets_BKV = jax.nn.one_hot(
        np.random.default_rng(3).integers(0, VOCABULARY, slots_BK.shape), VOCABULARY
    )
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
        for (path, gradient), other in zip(
            jax.tree.leaves_with_path(gradients), jax.tree.leaves(other_gradients), strict=True
        ):
            assert np.linalg.norm(other - gradient) < 1e-6 * norm, (settings, path)


@pytest.mark.parametrize('positions', ['absolute', 'shared_bias', 'layer_bias'])
def test_masked_pixels_cannot_be_seen(positions):
    """Bit for bit the same output, whatever stands in a hidden patch; transformers#13235 ignored
    the mask silently."""
    images_BHWC, mask_BP, slots_BK = inputs()
    run = jax.jit(model(positions=positions).__call__)
    logits_BKV = run(images_BHWC, mask_BP, slots_BK)
    hidden_BHWC = (
        mask_BP.reshape(BATCH, *GRID).repeat(PATCH, axis=1).repeat(PATCH, axis=2)[..., None]
    )
    for other in (
        -images_BHWC,
        np.full_like(images_BHWC, np.nan),
        np.full_like(images_BHWC, np.inf),
    ):
        np.testing.assert_array_equal(
            run(np.where(hidden_BHWC, other, images_BHWC), mask_BP, slots_BK), logits_BKV
        )
    assert (
        np.abs(
            run(np.where(hidden_BHWC, images_BHWC, -images_BHWC), mask_BP, slots_BK) - logits_BKV
        )
        .min(axis=(1, 2))
        .max()
        > 0
    )
    none_BP = np.zeros_like(mask_BP)
    assert np.abs(run(images_BHWC, none_BP, slots_BK) - logits_BKV).max() > 0.1


def test_size_that_patches_do_not_divide():
    assert EncoderConfig(patch_size=7).grid(21, 35) == (3, 5)
    for size in ((22, 35), (21, 34)):
        with pytest.raises(
            RequestError, match=f'{size[0]} x {size[1]} cannot be cut into patches of 7'
        ):
            EncoderConfig(patch_size=7).grid(*size)


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
        EncoderConfig(**settings)


def test_rates_of_stochastic_depth():
    """Linear from 0 to the rate; six binomial tests at 1e-6, and what is kept is scaled so that the
    mean stays."""
    keys_B = jax.random.split(jax.random.key(0), 20_000)
    encoder = model().encoder
    keep_L2B = np.asarray(encoder._draw_drop_path(keys_B))
    for layer, (keep_2B, rate) in enumerate(
        zip(keep_L2B, np.arange(CONFIG.depth) * 0.4 / (CONFIG.depth - 1))
    ):
        np.testing.assert_allclose(
            np.unique(keep_2B), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6
        )
        for keep_B in keep_2B:
            assert (
                scipy.stats.binomtest(int((keep_B == 0).sum()), len(keep_B), rate).pvalue > 1e-6
            ), layer
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
    assert (
        model().encoder._draw_drop_path(None) is None
        and model(drop_path=0.0).encoder._draw_drop_path(keys_B) is None
    )
    assert np.abs(dropped - whole).max(axis=(1, 2)).min() > 0.01
    # By hand: a branch is multiplied by 0 or by 1 / (1 - rate).
    encoder, block = model().encoder, list(model().encoder.blocks.values())[-1]
    x_BND = jnp.asarray(
        np.random.default_rng(0).normal(size=(BATCH, 16, CONFIG.width)), jnp.float32
    )
    keep_2B, bias_HNN = jnp.asarray(encoder._draw_drop_path(keys_B)[-1]), encoder.position_bias()
    np.testing.assert_allclose(np.unique(keep_2B), [0, 1 / (1 - 0.4)])

    @jax.jit
    def by_hand():
        attended_BND = (
            block.attention(block.norm1(x_BND), bias_HNN)
            * block.scale1[...]
            * keep_2B[0][:, None, None]
            + x_BND
        )
        return (
            block.mlp(block.norm2(attended_BND)) * block.scale2[...] * keep_2B[1][:, None, None]
            + attended_BND
        )

    np.testing.assert_allclose(
        jax.jit(block.__call__)(x_BND, bias_HNN, keep_2B), by_hand(), atol=1e-5
    )


@pytest.mark.parametrize('unroll', [1, 3])
def test_every_layer(unroll):
    images_BHWC, mask_BP, _ = inputs()
    encoder = model(unroll=unroll).encoder
    layers_LBND, last_BND = jax.jit(
        lambda: (
            encoder(images_BHWC, mask_BP, every_layer=lambda x_BND: x_BND),
            encoder(images_BHWC, mask_BP),
        )
    )()
    assert layers_LBND.shape == (CONFIG.depth, BATCH, 16, CONFIG.width)
    np.testing.assert_array_equal(layers_LBND[-1], last_BND)
    bias_HNN, blocks = encoder.position_bias(), list(encoder.blocks.values())
    for layer in range(1, CONFIG.depth):
        np.testing.assert_allclose(
            layers_LBND[layer], blocks[layer](layers_LBND[layer - 1], bias_HNN), atol=1e-5
        )


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
        return jnp.mean(logits_BKV**2), (
            logits_BKV,
            half.encoder(images_BHWC, mask_BP, keys_B=keys_B),
        )

    gradients, (logits_BKV, x_BND) = jax.eval_shape(jax.grad(run, has_aux=True), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, gradients)))
    assert logits_BKV.dtype == jnp.float32 and x_BND.dtype == jnp.bfloat16
    logits_BKV, expected_BKV = (
        jax.jit(run)(params)[1][0],
        jax.jit(full.__call__)(images_BHWC, mask_BP, slots_BK),
    )
    error = float(jnp.std(logits_BKV - expected_BKV) / jnp.std(expected_BKV))
    assert 1e-4 < error < 0.03, error  # bfloat16 has 8 bits: rounded, and no more than rounded


@pytest.mark.parametrize('grid', [(3, 5), (5, 2), (1, 7)])
def test_relative_position_index(grid):
    height, width = grid
    index = relative_position_index(grid)
    last = (2 * height - 1) * (2 * width - 1) + 2
    assert index.shape == (1 + height * width,) * 2
    for query in range(1 + height * width):
        for key in range(1 + height * width):
            if query and key:
                (y, x), (v, u) = divmod(query - 1, width), divmod(key - 1, width)
                expected = (y - v + height - 1) * (2 * width - 1) + (x - u + width - 1)
            else:
                expected = last if query == key else last - 2 if query == 0 else last - 1
            assert index[query, key] == expected, (query, key)


def test_encoder_takes_any_grid():
    """Rows and columns are not mixed up: turning picture, mask and bias table by 90 degrees turns
    the output."""
    config = dataclasses.replace(CONFIG, patch_size=1, depth=2)
    encoder, turned = (
        filled(lambda grid=grid: Encoder(config, grid, rngs=nnx.Rngs(0)))
        for grid in ((3, 5), (5, 3))
    )
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 9, 3)).astype(np.float32)
    rest = rng.normal(size=(3, 3)).astype(np.float32)
    encoder.position_bias.table[...] = jnp.concatenate([table.reshape(45, 3), rest])
    turned.position_bias.table[...] = jnp.concatenate(
        [table.transpose(1, 0, 2).reshape(45, 3), rest]
    )
    images_BHWC = rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(encoder.__call__)(images_BHWC))[:, 1:].reshape(2, 3, 5, -1)
    actual = (
        np.asarray(jax.jit(turned.__call__)(images_BHWC.transpose(0, 2, 1, 3)))[:, 1:]
        .reshape(2, 5, 3, -1)
        .transpose(0, 2, 1, 3)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
