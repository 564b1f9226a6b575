"""Weights of PyTorch -> file -> import -> the same logits -> export -> the library itself, strictly
-> the same bits."""

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

SMALL = {'width': 128, 'depth': 2, 'heads': 2, 'hidden': 200}
LARGE = {'width': 1024, 'depth': 24, 'heads': 16, 'hidden': 4096, 'layer_scale': 1e-5}
KINDS = {
    'pretrained': SMALL | {'positions': 'shared_bias', 'side': 80, 'vocabulary': 101},
    'pretrained-vanilla': SMALL
    | {'positions': 'absolute', 'side': 80, 'vocabulary': 101, 'layer_scale': 0.0},
    'classifier-patch8': SMALL
    | {'positions': 'layer_bias', 'side': 56, 'patch_size': 8, 'classes': 11},
    'classifier-384': SMALL | {'positions': 'layer_bias', 'side': 384, 'classes': 11},
    'classifier-shared': SMALL
    | {'positions': 'shared_bias', 'side': 80, 'classes': 11, 'layer_scale': 0.0},
    'vanilla-cls': SMALL
    | {'positions': 'absolute', 'side': 80, 'classes': 11, 'layer_scale': 0.0, 'pooling': 'cls'},
    'two-classes': SMALL
    | {'positions': 'layer_bias', 'side': 48, 'classes': 2, 'width': 60, 'heads': 5},
    'headless': SMALL | {'positions': 'layer_bias', 'side': 80, 'classes': 0},
}
PUBLISHED = {
    'pretrained-base': {'positions': 'shared_bias', 'vocabulary': 8192},
    'pretrained-large': LARGE | {'positions': 'shared_bias', 'vocabulary': 8192},
    'base-224': {'positions': 'layer_bias'},
    'base-384': {'positions': 'layer_bias', 'side': 384},
    'large-512': LARGE | {'positions': 'layer_bias', 'side': 512, 'depth': 2},
    'vanilla-base': {'positions': 'absolute', 'layer_scale': 0.0, 'pooling': 'cls'},
}
BATCH = 2
# what a bare file does not tell
pytestmark = pytest.mark.filterwarnings('ignore:.*(assumed|left out)')


def call(tool, **options):
    tool.run(tool._arguments().parse_args([f'--{name}={value}' for name, value in options.items()]))


def normalized(images):
    """For torch: [B, 3, S, S] from [-1, 1]."""
    return torch.from_numpy((images.transpose(0, 3, 1, 2) - np.float32(0.5)) / np.float32(0.5))


def all_logits(model, images, mask_BP):
    """Of the tokens of all patches."""
    slots_BP = np.broadcast_to(np.arange(mask_BP.shape[1]), mask_BP.shape)
    module = nnx.merge(model.graphdef, model.params)
    return jax.jit(module.__call__)((images - np.float32(0.5)) / np.float32(0.5), mask_BP, slots_BP)


def check_round_trip(dialect, kind, directory):
    """One model, there and back."""
    theirs = (
        torch_models.make_transformers(**kind)
        if dialect == 'huggingface'
        else torch_models.make_timm(**kind)
    )
    path = directory / 'theirs'
    if dialect == 'huggingface':
        theirs.save_pretrained(path)
    elif dialect == 'timm':
        path = directory / 'theirs.safetensors'
        safetensors.torch.save_model(theirs, path)
    else:
        torch_models.keep_indices(theirs)
        path = directory / 'theirs.pth'
        args = argparse.Namespace(
            model='beit', imagenet_default_mean_and_std=False, lr=1e-3, device='cuda'
        )
        torch.save(
            {
                'model': theirs.state_dict(),
                'optimizer': {'state': {0: {'step': 5}}},
                'epoch': 3,
                'args': args,
            },
            path,
        )
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
            expected, found = (
                theirs(normalized(images)),
                nnx.merge(ours.graphdef, ours.params)(images * 2 - 1),
            )
            expected = getattr(expected, 'pooler_output', expected).numpy()
    difference = np.abs(np.asarray(found) - expected).max()
    assert found.shape == expected.shape and expected.std() > 0.3 and difference < 1e-4, difference


def load_strictly(theirs, kind, dialect, directory):
    """The state dict of an exported model after the library has loaded it."""
    if dialect == 'huggingface':
        model, report = type(theirs).from_pretrained(directory, output_loading_info=True)
        assert not any(report.values()), report
        assert {
            name: value for name, value in model.config.to_dict().items() if name != '_name_or_path'
        } == {
            name: value
            for name, value in theirs.config.to_dict().items()
            if name != '_name_or_path'
        } | {'drop_path_rate': 0.0}
        return model.state_dict()
    if dialect == 'timm':
        model = torch_models.timm.create_model(f'local-dir:{directory}', pretrained=True)
        state = safetensors.torch.load_file(directory / 'model.safetensors')
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        torch_models.randomize(model, 5).load_state_dict(state, strict=True)
        return model.state_dict()
    fresh = torch_models.randomize(torch_models.keep_indices(torch_models.make_timm(**kind)), 5)
    fresh.load_state_dict(
        torch.load(directory / 'model.pth', weights_only=True)['model'], strict=True
    )
    assert (
        safetensors.torch.load_file(directory / 'model.safetensors').keys()
        == fresh.state_dict().keys()
    )
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
    check_round_trip(dialect, kind, tmp_path)


@pytest.mark.parametrize(
    'kind',
    [
        {'positions': 'absolute', 'eps': 0.1, 'classes': 3},
        {'positions': 'shared_bias', 'eps': 0.03, 'vocabulary': 31},
    ],
)
def test_what_only_json_says(kind, tmp_path):
    """The eps of the norms, and without a bias table the number of heads: other ones give other
    logits."""
    check_round_trip(
        'huggingface',
        SMALL | {'width': 96, 'heads': 12, 'side': 48, 'layer_scale': 0.0} | kind,
        tmp_path,
    )
