"""What is said of a model beside its tensors, in every form it comes in, and what is refused."""

import argparse
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.importer import convert, examine
from tests import torch_models
from tests.weights.pytorch.small_models import CLASSIFIER, SIZES, copy, save


def test_what_a_transformers_folder_says(folder, tmp_path):
    found = examine(folder)
    assert found.dialect == 'huggingface' and not found.problems
    assert found.classes == tuple(f'kind {i}' for i in range(7))
    said = {
        'mean': [0.4, 0.5, 0.6],
        'norm_eps': 1e-12,
        'heads': 2,
        'grid': [5, 5],
        'pooling': 'mean',
        'positions': 'layer_bias',
        'num_classes': 7,
        'crop': 0.875,
    }
    assert found.architecture | said == found.architecture
    crop = 'the central 0.875 of the shorter side becomes 80 pixels'
    assert any(crop in note for note in found.notes)
    # the JSON beside it is read
    assert examine(folder / 'model.safetensors').architecture == found.architecture
    changed = {'num_attention_heads': 4, 'hidden_act': 'relu', 'intermediate_size': 201}
    strange = copy(folder, tmp_path / 'strange', image_size=[80, 80], **changed)
    problems = ' '.join(examine(strange).problems)
    assert "hidden_act 'relu', the tensors 'gelu'" in problems
    assert 'intermediate_size 201, the tensors 200' in problems
    assert 'relative_position_bias_table is [84, 2], expected [84, 4]' in problems
    assert 'image_size' not in problems


def test_defaults_of_transformers(tmp_path):
    """config.json may leave out what is at its default: 12 heads and eps 1e-12 among them."""
    sizes = SIZES | {'positions': 'absolute', 'width': 96, 'heads': 12, 'classes': 3}
    torch_models.make_transformers(**sizes).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    kept = (
        'model_type',
        'architectures',
        'hidden_size',
        'num_hidden_layers',
        'intermediate_size',
        'image_size',
        'id2label',
        'use_absolute_position_embeddings',
    )
    config = {name: config[name] for name in kept}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    found = examine(tmp_path)
    assert not found.problems
    assert (found.architecture['heads'], found.architecture['norm_eps']) == (12, 1e-12)
    del config['hidden_size']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert 'config.json says hidden_size 768, the tensors 96' in examine(tmp_path).problems


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
CROPS, HALF = {'do_center_crop': True}, [0.5] * 3
EDGES = {'size': {'shortest_edge': 100}, 'crop_size': {'height': 80, 'width': 80}}
SQUEEZED = {'size': {'height': 100, 'width': 100}, 'crop_size': 80}
RESCALED = {'rescale_factor': 1 / 127.5, 'image_mean': [1.0] * 3, 'image_std': [1.0] * 3}
BYTES = {'do_rescale': False, 'image_mean': [127.5] * 3, 'image_std': [51.0] * 3}
# fmt: off
PROCESSORS = [
    # preprocessor_config.json; mean, std, crop of the model
    ({'image_mean': MEAN, 'image_std': STD},      MEAN,      STD,       0.875),
    ({'do_normalize': False, 'image_mean': MEAN}, [0.0] * 3, [1.0] * 3, 0.875),
    (RESCALED,                                    HALF,      HALF,      0.875),
    (BYTES,                                       HALF,      [0.2] * 3, 0.875),
    (CROPS | EDGES,                               HALF,      HALF,      0.8),
    (CROPS | {'size': 100, 'crop_size': 80},      HALF,      HALF,      0.8),
    (CROPS | SQUEEZED,                            HALF,      HALF,      0.875),
    (CROPS | {'size': 100, 'crop_size': 60},      HALF,      HALF,      0.875),
]
# fmt: on


@pytest.mark.parametrize(('processor', 'mean', 'std', 'crop'), PROCESSORS)
def test_processors(folder, processor, mean, std, crop, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    found = examine(tmp_path)
    pixels = [found.architecture['mean'], found.architecture['std']]
    np.testing.assert_allclose(pixels, [mean, std], rtol=1e-6)
    assert found.architecture['crop'] == crop
    assert ('as BEiT was evaluated' in ' '.join(found.notes)) == (crop == 0.875)


STRANGE = [
    None,
    True,
    -1,
    0,
    2.5,
    1e400,
    '2',
    'x',
    [],
    [1],
    {},
    {'a': None},
    {'²': 'a'},
    [10**400] * 3,
    [None] * 3,
    float('nan'),
    '[' * 9000,
]
CONFIG = (
    'num_attention_heads',
    'layer_norm_eps',
    'layer_scale_init_value',
    'id2label',
    'architectures',
    'image_size',
    'hidden_size',
    'model_type',
)
PROCESSOR = (
    'size',
    'crop_size',
    'image_mean',
    'image_std',
    'rescale_factor',
    'resample',
    'do_center_crop',
    'do_normalize',
    'do_rescale',
)
ENTRIES = [('config.json', name) for name in CONFIG]
ENTRIES += [('preprocessor_config.json', name) for name in PROCESSOR]


@pytest.mark.parametrize(('file', 'name'), ENTRIES)
def test_strange_json(file, name, folder, tmp_path):
    """A request error, or a model that is described by numbers as they should be."""
    copy(folder, tmp_path)
    whole = json.loads((folder / file).read_text())
    for value in STRANGE:
        (tmp_path / file).write_text(json.dumps(whole | {name: value}))
        check_sound(tmp_path)


def check_sound(path):
    try:
        found = examine(path)
        _, description = convert(found)
    except RequestError as error:
        assert len(str(error)) < 1000
        return
    a = description['architecture']
    assert a['heads'] == 2 and a['num_classes'] == 7
    assert 0 <= a['norm_eps'] <= 1 and a['layer_scale'] > 0 and 0 < a['crop'] <= 1
    assert len(a['mean']) == len(a['std']) == 3
    assert all(np.isfinite(a['mean'])) and min(a['std']) > 0
    assert all(isinstance(name, str) for name in found.classes)


@pytest.mark.parametrize(
    'name', ['model_args', 'pretrained_cfg', 'num_classes', 'label_names', 'crop_pct', 'mean']
)
def test_strange_json_of_timm(name, tmp_path):
    model = torch_models.make_timm(**CLASSIFIER)
    safetensors.torch.save_model(model, str(tmp_path / 'model.safetensors'))
    whole = {
        'architecture': 'beit_base_patch16_224',
        'label_names': [f'kind {i}' for i in range(7)],
        'mean': [0.1, 0.2, 0.3],
        'std': [0.4, 0.5, 0.6],
        'crop_pct': 0.9,
    }
    (tmp_path / 'config.json').write_text(json.dumps(whole))
    found = examine(tmp_path)
    assert found.dialect == 'timm' and found.classes[6] == 'kind 6' and not found.problems
    assert (found.architecture['mean'], found.architecture['crop']) == ([0.1, 0.2, 0.3], 0.9)
    for value in STRANGE:
        (tmp_path / 'config.json').write_text(json.dumps(whole | {name: value}))
        check_sound(tmp_path)


def test_classes_go_by_the_order_of_their_numbers(folder, tmp_path):
    """The hub leaves out two numbers of the 22k classes; here one."""
    labels = {str(i): f'kind {i}' for i in (0, 1, 2, 3, 5, 10, 9)}
    found = examine(copy(folder, tmp_path, id2label=labels))
    assert found.classes == tuple(f'kind {i}' for i in (0, 1, 2, 3, 5, 9, 10))
    del labels['0']
    found = examine(copy(folder, tmp_path, id2label=labels))
    assert '6 classes are named, the head has 7' in found.problems


def test_settings_of_the_official_code(state, tmp_path):
    def said(**arguments):
        return examine(save(state, tmp_path / 'said.pth', args=argparse.Namespace(**arguments)))

    found = said(imagenet_default_mean_and_std=True, layer_scale_init_value=1e-5, nothing=None)
    assert found.architecture['mean'] == [0.485, 0.456, 0.406]
    assert found.architecture['layer_scale'] == 1e-5 and not found.notes
    # its train.py
    assert not said(mean=None, std=None, crop_pct=None, classes=3, heads='x').problems
    assert said(crop_pct=1.0).architecture['crop'] == 1.0
    assert said(layer_scale_init_value='x').problems
    averaged = examine(save(state, tmp_path / 'e.pth', model_ema=state))
    assert 'model_ema, other weights in the file, is not used' in averaged.notes
    compiled = {f'_orig_mod.{name}': value for name, value in state.items()}
    torch.save({'state_dict_ema': compiled}, tmp_path / 'f.pth')
    assert not examine(tmp_path / 'f.pth').problems
    given = examine(tmp_path / 'f.pth', [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert given.architecture['std'] == [0.4, 0.5, 0.6] and not given.notes
    second = examine(save(state, tmp_path / 'beitv2_base.pth'))
    assert second.architecture['mean'] == [0.485, 0.456, 0.406]
    named = examine(save(state, tmp_path / 'beit_base_patch16_224_pt22k.pth'))
    assert named.source.released.hub == 'microsoft/beit-base-patch16-224-pt22k'
    assert named.architecture['mean'] == [0.5] * 3 and not named.notes
    vanilla = examine(save(state, tmp_path / 'beit_base_patch16_224_pt1k_800ep.pth'))
    assert vanilla.architecture['mean'] == [0.485, 0.456, 0.406] and not vanilla.notes
