"""Pictures of other channels and shapes: RGB weights start their models by timm's rule, and they go
to timm and transformers and come back."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks.classify import make
from beit_jax.tasks.pretrain import GivenTokens, make_on_given_tokens
from beit_jax.tools import export_weights, import_weights
from beit_jax.weights.channels import fit_channels
from beit_jax.weights.pytorch.names import from_torch
from tests import tiny, torch_models
from tests.tools.call import call
from tests.torch_models import timm

CHANNELS = 12
SIZES = {'width': 60, 'depth': 2, 'heads': 5, 'hidden': 70, 'patch_size': 8}
DATA = {
    'name': 'folder',
    'path': 'x',
    'channels': CHANNELS + 2,
    'bits': 16,
    'bands': (3, 2, 1, 0, 4, 5, 6, 7, 13, 9, 10, 11),
    'image_size': (24, 40),
    'mean': tuple(0.1 + i / 20 for i in range(CHANNELS)),
    'std': tuple(0.3 + i / 30 for i in range(CHANNELS)),
    'color_jitter': (0.0, 0.0, 0.0),
}
pytestmark = pytest.mark.filterwarnings('ignore:.*(assumed|left out)')


@functools.cache
def theirs_of(channels):
    """timm's model for other channels, from the state dict of one for RGB; and that dict."""
    sizes = torch_models.timm_sizes('layer_bias', 60, 2, 5, 70, 24, 8, 0.1)
    create = functools.partial(timm.create_model, 'beit_base_patch16_224', num_classes=7, **sizes)
    state = torch_models.randomize(create()).state_dict()
    overlay = {'state_dict': dict(state), 'num_classes': 7}
    model = create(pretrained=True, in_chans=channels, pretrained_cfg_overlay=overlay)
    return model.eval(), state


@pytest.mark.parametrize('channels', [1, 2, 4, 12])
def test_as_timm_adapts(channels, tmp_path):
    model, state = theirs_of(channels)
    name, path = 'patch_embed.proj.weight', 'encoder/patch_embedding/kernel'
    rgb, expected = (from_torch(path, one[name].numpy()) for one in (state, model.state_dict()))
    encoder = {'patch_embedding': {'kernel': rgb, 'bias': 0}}
    found, notes = fit_channels(encoder, 3, channels)
    np.testing.assert_allclose(found['patch_embedding']['kernel'], expected, atol=1e-6)
    assert len(notes) == 1 and not fit_channels(encoder, 3, 3)[1]
    torch.save({'model': state}, tmp_path / 'rgb.pth')
    arguments = {'input': tmp_path / 'rgb.pth', 'output': tmp_path / 'ours', 'channels': channels}
    call(import_weights, **arguments)
    ours = beit_jax.load(tmp_path / 'ours')
    images = np.random.default_rng(0).random((3, 24, 24, channels), np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2) * 2 - 1)).numpy()
    np.testing.assert_allclose(ours.logits(images), logits, atol=1e-4)


def test_a_run_starts_from_rgb(tmp_path):
    _, state = theirs_of(3)
    torch.save({'model': state}, tmp_path / 'rgb.pth')
    wanted = from_torch(
        'encoder/patch_embedding/kernel',
        theirs_of(CHANNELS)[0].state_dict()['patch_embed.proj.weight'].numpy(),
    )
    found = beit_jax.weights.load.load_weights(str(tmp_path / 'rgb.pth'))
    for settings, task_of in (
        (tiny.classify_settings, make),
        (functools.partial(tiny.settings, ''), make_on_given_tokens),
    ):
        # fmt: off
        config = settings(data=DATA, model=SIZES | {'layer_scale': 0.1, 'positions': 'layer_bias'},
                          **({'num_classes': 7} if task_of is make else {}))
        # fmt: on
        config['mask'] = {'patches': 5, 'min_block': 2}
        if task_of is make:
            del config['mask']
        task = task_of(task_config(config))
        params, _, notes = task.adapt(*found, tuple('abcdefg'), 'rgb.pth')
        kernel = params['encoder']['patch_embedding']['kernel']
        np.testing.assert_allclose(kernel, wanted, atol=1e-6)
        assert any('kernels of 3 channels are repeated for 12' in note for note in notes)


def made(kind, positions, directory, data=DATA):
    """A checkpoint of a model for such pictures, with random parameters."""
    model = SIZES | {'positions': positions, 'layer_scale': 0.1, 'init_std': 0.2}
    if kind == 'classify':
        config = tiny.classify_settings(data=data, model=model, num_classes=7, head_scale=50.0)
        task = make(task_config(config))
    else:
        config = tiny.settings('', data=data, model=model, mask={'patches': 5, 'min_block': 2})
        task = make_on_given_tokens(task_config(config), GivenTokens(31))
    tiny.save_checkpoint(directory, task, classes=[f'kind {i}' for i in range(7)])
    return beit_jax.load(directory)


def pictures(count=3):
    random = np.random.default_rng(5)
    return random.integers(0, 65536, (count, 24, 40, CHANNELS), dtype=np.uint16)


def normalized(images):
    mean, std = (np.array(DATA[name], np.float32) for name in ('mean', 'std'))
    return torch.from_numpy((images / np.float32(65535) - mean) / std).permute(0, 3, 1, 2)


def assert_same(one, other):
    """Two models: what they are, and every number."""
    for name in ('grid', 'channels', 'mean', 'std', 'crop', 'image_size', 'pixels', 'norm_eps'):
        theirs, ours = one.architecture.get(name), other.architecture.get(name)
        if name in ('mean', 'std'):
            np.testing.assert_allclose(theirs, ours, rtol=1e-12)
        elif name == 'crop':  # transformers has it in whole pixels
            assert theirs == pytest.approx(ours, abs=0.01)
        else:
            assert json.dumps(theirs) == json.dumps(ours), name
    assert one.pixels == other.pixels and one.shape == other.shape == (24, 40)
    for leaf, wanted in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params)):
        np.testing.assert_array_equal(leaf, wanted)


@pytest.mark.parametrize('kind, positions', [('classify', 'layer_bias'), ('pretrain', 'absolute')])
def test_to_timm_and_back(kind, positions, tmp_path):
    ours, images = made(kind, positions, tmp_path / 'run'), pictures()
    call(export_weights, input=tmp_path / 'run', format='timm', output=tmp_path / 'timm')
    theirs = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
    assert theirs.patch_embed.proj.weight.shape[1] == CHANNELS
    features = []
    theirs.blocks[-1].register_forward_hook(lambda *call: features.append(call[2]))
    with torch.no_grad():
        logits = theirs(normalized(images)).numpy()
    found = ours.features(images, [-1], patches=True)
    np.testing.assert_allclose(found['cls'][0], features[0][:, 0], atol=1e-4)
    patches = np.asarray(found['patches'][0]).reshape(len(images), -1, SIZES['width'])
    np.testing.assert_allclose(patches, features[0][:, 1:], atol=1e-4)
    back = beit_jax.load(tmp_path / 'timm')
    if kind == 'classify':
        np.testing.assert_allclose(ours.logits(images), logits, atol=1e-4)
        assert_same(back, ours)


@pytest.mark.parametrize(
    'kind, positions', [('classify', 'layer_bias'), ('pretrain', 'shared_bias')]
)
def test_to_transformers_and_back(kind, positions, tmp_path):
    ours, images = made(kind, positions, tmp_path / 'run'), pictures()
    call(export_weights, input=tmp_path / 'run', format='huggingface', output=tmp_path / 'hf')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['num_channels'] == CHANNELS and config['image_size'] == [24, 40]
    name = 'BeitForImageClassification' if kind == 'classify' else 'BeitForMaskedImageModeling'
    theirs = getattr(transformers, name).from_pretrained(tmp_path / 'hf').eval()
    with torch.no_grad():
        logits = theirs(normalized(images)).logits.numpy()
    if kind == 'classify':
        np.testing.assert_allclose(ours.logits(images), logits, atol=1e-4)
    else:
        assert np.mean(logits.argmax(-1) == np.asarray(ours.tokens(images))) > 0.99
    assert_same(beit_jax.load(tmp_path / 'hf'), ours)


def test_to_the_official_code_and_back(tmp_path):
    ours = made('classify', 'layer_bias', tmp_path / 'run')
    call(export_weights, input=tmp_path / 'run', format='unilm', output=tmp_path / 'unilm')
    back = beit_jax.load(tmp_path / 'unilm' / 'model.safetensors')
    assert_same(back, ours)
    with pytest.raises(RequestError, match=r'no square grid of patches, and no config.json'):
        beit_jax.load(tmp_path / 'unilm' / 'model.pth')


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'pixels': {'channels': 9, 'bits': 16}}, 'its pixels is of 9 channels, the patch'),
        ({'pixels': {'channels': 12, 'bits': 7}}, 'which no pictures are'),
        ({'pixels': {'channels': 12, 'bits': 16, 'bands': [12]}}, 'which no pictures are'),
        ({'model_args': {'img_size': [10**6, 10**5]}}, 'its pictures are of'),
        ({'pretrained_cfg': {'mean': [0.5] * 3}}, 'its mean is of 3 channels'),
    ],
)
def test_forged_pictures(changed, message, tmp_path):
    made('classify', 'absolute', tmp_path / 'run')
    call(export_weights, input=tmp_path / 'run', format='timm', output=tmp_path / 'timm')
    path = tmp_path / 'timm' / 'config.json'
    config = json.loads(path.read_text())
    for name, value in changed.items():
        config[name] = config[name] | value if name != 'pixels' else value
    if 'model_args' in changed:
        del config['image_size']
    path.write_text(json.dumps(config))
    with pytest.raises(RequestError, match=message):
        beit_jax.load(tmp_path / 'timm')
