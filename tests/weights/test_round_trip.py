"""Weights of PyTorch there and back.

File -> import -> the same logits -> export -> the library itself, strictly -> the same bits.
"""

import argparse

from flax import nnx
import jax
import numpy as np
import pytest
import safetensors.torch
import torch

import beit_jax
from beit_jax.tools import export_weights, import_weights
from tests import torch_models
from tests.tools.call import call

SMALL = {'width': 128, 'depth': 2, 'heads': 2, 'hidden': 200}
LARGE = {'width': 1024, 'depth': 24, 'heads': 16, 'hidden': 4096, 'layer_scale': 1e-5}
VANILLA = {'positions': 'absolute', 'layer_scale': 0.0}
SHARED, LAYERS = {'positions': 'shared_bias'}, {'positions': 'layer_bias'}
BOTH = {'positions': 'absolute+shared_bias'}
# fmt: off
KINDS = {
    'pretrained':         SMALL | SHARED  | {'side': 80, 'vocabulary': 101},
    'pretrained-vanilla': SMALL | VANILLA | {'side': 80, 'vocabulary': 101},
    'classifier-patch8':  SMALL | LAYERS  | {'side': 56, 'classes': 11, 'patch_size': 8},
    'classifier-384':     SMALL | LAYERS  | {'side': 384, 'classes': 11},
    'classifier-shared':  SMALL | SHARED  | {'side': 80, 'classes': 11, 'layer_scale': 0.0},
    'vanilla-cls':        SMALL | VANILLA | {'side': 80, 'classes': 11, 'pooling': 'cls'},
    'two-classes':        SMALL | LAYERS  | {'side': 48, 'classes': 2, 'width': 60, 'heads': 5},
    'both-pretrained':    SMALL | BOTH    | {'side': 80, 'vocabulary': 31},
    'both-classifier':    SMALL | {'positions': 'absolute+layer_bias', 'side': 80, 'classes': 7},
    'no-qkv-bias':        SMALL | LAYERS  | {'side': 80, 'classes': 7, 'qkv_bias': False},
    'headless':           SMALL | LAYERS  | {'side': 80, 'classes': 0},
}
PUBLISHED = {
    'pretrained-base':            SHARED  | {'vocabulary': 8192},
    'pretrained-large':   LARGE | SHARED  | {'vocabulary': 8192},
    'base-224':                   LAYERS,
    'base-384':                   LAYERS  | {'side': 384},
    'large-512':          LARGE | LAYERS  | {'side': 512, 'depth': 2},
    'vanilla-base':               VANILLA | {'pooling': 'cls'},
}
# fmt: on
BATCH = 2
# what a bare file does not tell
pytestmark = pytest.mark.filterwarnings('ignore:.*(assumed|left out)')


def normalized(images):
    """For torch: [B, 3, S, S] from [-1, 1]."""
    return torch.from_numpy((images.transpose(0, 3, 1, 2) - np.float32(0.5)) / np.float32(0.5))


def all_logits(model, images, mask_BP):
    """Of the tokens of all patches."""
    slots_BP = np.broadcast_to(np.arange(mask_BP.shape[1]), mask_BP.shape)
    pixels = (images - np.float32(0.5)) / np.float32(0.5)

    @jax.jit
    def logits(params, *inputs):  # as constants they would stay, with the program
        return nnx.merge(model.graphdef, params)(*inputs)

    return logits(model.params, pixels, mask_BP, slots_BP)


def make_and_write(dialect, kind, directory):
    """(a model of PyTorch, where its library has saved it)."""
    if dialect == 'huggingface':
        model, path = torch_models.make_transformers(**kind), directory / 'theirs'
        model.save_pretrained(path)
        return model, path
    model = torch_models.make_timm(**kind)
    if dialect == 'timm':
        path = directory / 'theirs.safetensors'
        safetensors.torch.save_model(model, path)
        return model, path
    path = directory / 'theirs.pth'
    args = argparse.Namespace(
        model='beit', imagenet_default_mean_and_std=False, lr=1e-3, device='cuda'
    )
    beside = {'optimizer': {'state': {0: {'step': 5}}}, 'epoch': 3, 'args': args}
    torch.save({'model': torch_models.keep_indices(model).state_dict()} | beside, path)
    return model, path


def check_round_trip(dialect, kind, directory):
    """One model, there and back."""
    theirs, path = make_and_write(dialect, kind, directory)
    call(import_weights, input=path, output=directory / 'ours')
    ours = beit_jax.load(directory / 'ours')
    check_outputs(theirs, ours, kind)
    call(export_weights, input=directory / 'ours', format=dialect, output=directory / 'back')
    back = load_strictly(theirs, kind, dialect, directory / 'back')
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(back[name], tensor), name


def check_outputs(theirs, ours, kind):
    rng = np.random.default_rng(1)
    side, patch_size = kind.get('side', 224), kind.get('patch_size', 16)
    images = rng.random((BATCH, side, side, 3), np.float32)
    with torch.no_grad():
        if kind.get('vocabulary'):
            mask_BP = rng.random((BATCH, (side // patch_size) ** 2)) < 0.4
            expected = theirs(normalized(images), bool_masked_pos=torch.from_numpy(mask_BP))
            found = all_logits(ours, images, mask_BP)
            expected = getattr(expected, 'logits', expected).numpy()
            # the mask makes a difference
            assert np.mean(np.asarray(ours.tokens(images)) == expected.argmax(-1)) < 0.9
        elif kind.get('classes', 1000):
            expected, found = theirs(normalized(images)), ours.logits(images)
            expected = getattr(expected, 'logits', expected).numpy()
        else:
            expected = theirs(normalized(images))
            found = nnx.merge(ours.graphdef, ours.params)(images * 2 - 1)
            expected = getattr(expected, 'pooler_output', expected).numpy()
    difference = np.abs(np.asarray(found) - expected).max()
    assert found.shape == expected.shape and expected.std() > 0.3 and difference < 1e-4, difference


def load_strictly(theirs, kind, dialect, directory):
    """The state dict of an exported model after the library has loaded it."""
    if dialect == 'huggingface':
        model, report = type(theirs).from_pretrained(directory, output_loading_info=True)
        assert not any(report.values()), report
        alike = {'_name_or_path': None, 'drop_path_rate': 0.0}
        found, expected = model.config.to_dict(), theirs.config.to_dict()
        assert found['drop_path_rate'] == 0.0
        assert found | alike == expected | alike
        return model.state_dict()
    if dialect == 'timm':
        model = torch_models.timm.create_model(f'local-dir:{directory}', pretrained=True)
        state = safetensors.torch.load_file(directory / 'model.safetensors')
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        torch_models.randomize(model, 5).load_state_dict(state, strict=True)
        return model.state_dict()
    fresh = torch_models.randomize(torch_models.keep_indices(torch_models.make_timm(**kind)), 5)
    state = torch.load(directory / 'model.pth', weights_only=True)['model']
    fresh.load_state_dict(state, strict=True)
    beside = safetensors.torch.load_file(directory / 'model.safetensors')
    assert beside.keys() == fresh.state_dict().keys()
    return fresh.state_dict()


@pytest.mark.parametrize(
    'kind',
    [
        *(pytest.param(kind, id=name) for name, kind in KINDS.items()),
        *(pytest.param(kind, id=name, marks=pytest.mark.slow) for name, kind in PUBLISHED.items()),
    ],
)
@pytest.mark.parametrize('dialect', ['unilm', 'timm', 'huggingface'])
def test_round_trip(dialect, kind, tmp_path):
    if dialect == 'timm' and kind.get('vocabulary'):
        pytest.skip('timm has no masked image model')
    if dialect == 'huggingface' and 'qkv_bias' in kind:
        pytest.skip('queries and values always have biases there')
    check_round_trip(dialect, kind, tmp_path)


def test_zeros_for_the_biases_that_transformers_has(tmp_path):
    kind = KINDS['no-qkv-bias']
    _, path = make_and_write('unilm', kind, tmp_path)
    call(export_weights, input=path, format='huggingface', output=tmp_path / 'back')
    model = torch_models.transformers.BeitForImageClassification.from_pretrained(tmp_path / 'back')
    check_outputs(model.eval(), beit_jax.load(path), kind)


@pytest.mark.parametrize(
    'kind',
    [
        {'positions': 'absolute', 'eps': 0.1, 'classes': 3},
        {'positions': 'shared_bias', 'eps': 0.03, 'vocabulary': 31},
    ],
)
def test_what_only_json_says(kind, tmp_path):
    """The eps of the norms, and without a bias table the number of heads.

    Other ones give other logits.
    """
    sizes = SMALL | {'width': 96, 'heads': 12, 'side': 48, 'layer_scale': 0.0}
    check_round_trip('huggingface', sizes | kind, tmp_path)
