"""Our model against Hugging Face's BEiT with the same random weights.

float32, evaluation mode: 1e-5 a layer, 1e-4 a model.
"""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import Classifier, MaskedImageModel
from tests.torch_models import make_transformers

SIZES = {'width': 55, 'depth': 3, 'heads': 5, 'hidden': 89}
VOCABULARY, BATCH = 101, 3

# transformers 4 -> 5, in this order
RENAMED = [
    (r'encoder\.relative_position_bias', 'shared_position_bias'),
    (r'encoder\.layer\.', 'layers.'),
    (r'attention\.attention\.relative_position_bias', 'relative_position_bias'),
    (r'attention\.attention\.(query|key|value)', lambda name: f'attention.{name[1][0]}_proj'),
    (r'attention\.output\.dense', 'attention.o_proj'),
    (r'intermediate\.dense', 'mlp.fc1'),
    (r'output\.dense', 'mlp.fc2'),
]
# ours -> transformers 5, in this order
NAMES = [
    (r'^head/norm', 'layernorm'),
    (r'^head/projection', 'lm_head'),
    (r'^classifier/norm', 'beit/pooler/layernorm'),
    (r'^classifier/classes', 'classifier'),
    (r'^encoder/blocks/0*(\d+)', r'beit/layers/\1'),
    (r'^encoder/position_bias/table', 'beit/shared_position_bias/relative_position_bias_table'),
    (r'^encoder', 'beit/embeddings'),
    (r'embeddings/patch_embedding', 'embeddings/patch_embeddings/projection'),
    (r'position_embedding$', 'position_embeddings'),
    (r'attention/position_bias/table', 'relative_position_bias/relative_position_bias_table'),
    (r'attention/(query|key|value)', lambda name: f'attention/{name[1][0]}_proj'),
    (r'attention/out', 'attention/o_proj'),
    (r'norm1', 'layernorm_before'),
    (r'norm2', 'layernorm_after'),
    (r'scale(\d)$', r'lambda_\1'),
    (r'(kernel|scale)$', 'weight'),
]


def rename(name, table):
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def copy_weights(theirs, ours):
    """Every weight of one is a weight of the other.

    The head of a classifier stands for two modules of theirs.
    """
    weights = {}
    for name, value in theirs.state_dict().items():
        if 'position_index' not in name:
            weights[rename(name, RENAMED)] = value.numpy()
    state = nnx.state(ours)
    for path, leaf in nnx.to_flat_state(state):
        name = '/'.join(path)
        name = name.replace('head/', 'classifier/') if isinstance(ours, Classifier) else name
        value = weights.pop(rename(name, NAMES).replace('/', '.'))
        if path[-1] == 'kernel' and value.ndim == 4:
            # [out, channel, row, column] -> [(row, column, channel), out]
            value = value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        elif path[-1] == 'kernel':
            value = value.T
        elif path[-1] == 'position_embedding':
            value = value[0]
        elif path[-1].endswith('token'):
            value = value.ravel()
        assert leaf.shape == value.shape, path
        leaf.set_value(jnp.asarray(value))
    assert not weights, weights.keys()
    nnx.update(ours, state)


def make_pair(positions, grid, patch_size, layer_scale=0.1):
    """(theirs, ours) with the same weights, none of them near zero or one."""
    side = grid[0] * patch_size, grid[1] * patch_size
    sizes = {'side': side, 'patch_size': patch_size, 'layer_scale': layer_scale}
    theirs = make_transformers(positions, **SIZES, **sizes, vocabulary=VOCABULARY, eps=1e-6)
    # the scan on square grids, the loop on others
    config = EncoderConfig(
        **SIZES,
        patch_size=patch_size,
        positions=positions,
        layer_scale=layer_scale,
        unroll=1 if grid[0] == grid[1] else SIZES['depth'],
    )
    # shapes only: all are copied
    ours = nnx.eval_shape(lambda: MaskedImageModel(config, grid, VOCABULARY, rngs=nnx.Rngs(0)))
    copy_weights(theirs, ours)
    return theirs, ours


def without_resampling(monkeypatch):
    """Looks positions up: transformers resamples as if grids were square, even unchanged ones."""
    from transformers.models.beit import modeling_beit

    def bias(self, window_size, *_, **__):
        index = self.generate_relative_position_index(tuple(window_size))
        return self.relative_position_bias_table[index].permute(2, 0, 1)[None]

    monkeypatch.setattr(modeling_beit.BeitRelativePositionBias, 'forward', bias)
    embeddings = modeling_beit.BeitEmbeddings
    same = lambda self, *_: self.position_embeddings
    monkeypatch.setattr(embeddings, 'interpolate_pos_encoding', same)


@pytest.mark.parametrize(
    'positions, grid, patch_size, layer_scale',
    [
        pytest.param('shared_bias', (5, 5), 16, 0.1, id='plus'),
        pytest.param('layer_bias', (5, 5), 16, 0.1, id='layer_bias'),
        pytest.param('absolute', (5, 5), 16, 0.0, id='vanilla'),
        pytest.param('shared_bias', (7, 7), 3, 0.1, id='patch3'),
        pytest.param('shared_bias', (3, 7), 5, 0.1, id='plus-3x7'),
        pytest.param('layer_bias', (7, 2), 5, 0.0, id='layer_bias-7x2'),
        pytest.param('absolute', (2, 7), 5, 0.1, id='absolute-2x7'),
    ],
)
def test_logits(positions, grid, patch_size, layer_scale, monkeypatch):
    if grid[0] != grid[1]:
        without_resampling(monkeypatch)
    theirs, ours = make_pair(positions, grid, patch_size, layer_scale)
    rng = np.random.default_rng(1)
    shape = BATCH, grid[0] * patch_size, grid[1] * patch_size, 3
    images_BHWC = rng.normal(size=shape).astype(np.float32)
    slots_BK = np.stack([np.sort(rng.permutation(grid[0] * grid[1])[:5]) for _ in range(BATCH)])
    mask_BP = np.zeros((BATCH, grid[0] * grid[1]), bool)
    np.put_along_axis(mask_BP, slots_BK, True, axis=1)
    with torch.no_grad():
        logits_BPV = theirs(
            torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2)),
            bool_masked_pos=torch.from_numpy(mask_BP),
        ).logits.numpy()
    expected_BKV = np.take_along_axis(logits_BPV, slots_BK[..., None], axis=1)
    logits_BKV = np.asarray(jax.jit(ours.__call__)(images_BHWC, mask_BP, slots_BK))
    difference = np.abs(logits_BKV - expected_BKV).max()
    assert logits_BKV.std() > 0.3 and difference < 1e-4, difference


@pytest.mark.parametrize('positions', ['layer_bias', 'absolute'])
def test_classifier(positions):
    """Mean of the patches, norm, linear: BeitForImageClassification."""
    theirs = make_transformers(positions, **SIZES, side=35, patch_size=7, classes=11, eps=1e-6)
    config = EncoderConfig(**SIZES, patch_size=7, positions=positions)
    ours = nnx.eval_shape(lambda: Classifier(config, (5, 5), 11, rngs=nnx.Rngs(0)))
    copy_weights(theirs, ours)
    images_BHWC = np.random.default_rng(1).normal(size=(BATCH, 35, 35, 3)).astype(np.float32)
    with torch.no_grad():
        expected_BC = theirs(torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2))).logits.numpy()
    difference = np.abs(np.asarray(jax.jit(ours.__call__)(images_BHWC)) - expected_BC).max()
    assert expected_BC.std() > 0.3 and difference < 1e-4, difference


@pytest.mark.parametrize('layer_scale', [0.1, 0.0])
def test_hidden_states(layer_scale):
    """One block at a time on the same input: every token, CLS among them.

    The input is small, so that the eps of the norm shows.
    """
    theirs, ours = make_pair('layer_bias', (5, 5), 7, layer_scale)
    layers = theirs.beit.layers if hasattr(theirs.beit, 'layers') else theirs.beit.encoder.layer
    x_BND = (np.random.default_rng(2).normal(size=(BATCH, 26, SIZES['width'])) * 0.03).astype(
        np.float32
    )
    for layer, block in zip(layers, ours.encoder.blocks.values(), strict=True):
        with torch.no_grad():
            output = layer(torch.from_numpy(x_BND), resolution=(35, 35))
        expected_BND = (output[0] if isinstance(output, tuple) else output).numpy()
        difference = np.abs(np.asarray(jax.jit(block.__call__)(x_BND)) - expected_BND).max()
        assert difference < 1e-5 and np.abs(expected_BND - x_BND).std() > 0.05, difference


def test_embeddings():
    """Patches, masks, CLS and absolute positions, before the first block."""
    theirs, ours = make_pair('absolute', (5, 5), 7)
    rng = np.random.default_rng(3)
    images_BHWC = rng.normal(size=(BATCH, 35, 35, 3)).astype(np.float32)
    mask_BP = rng.random((BATCH, 25)) < 0.3
    with torch.no_grad():
        embedded = theirs.beit.embeddings(
            torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2)),
            bool_masked_pos=torch.from_numpy(mask_BP),
        )
    expected_BND = (embedded[0] if isinstance(embedded, tuple) else embedded).numpy()
    ours.encoder._run_blocks = lambda x_BND, *_: x_BND
    difference = np.abs(np.asarray(ours.encoder(images_BHWC, mask_BP)) - expected_BND).max()
    assert difference < 1e-5, difference
