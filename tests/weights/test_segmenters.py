"""Segmenters of transformers and mmsegmentation there and back.

Import, the same logits, export, the library itself, strictly, the same bits.
"""

import itertools
import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.models.architecture import in_words
from beit_jax.tools import export_weights, import_weights, inspect_weights
from beit_jax.weights.models import load_model
from beit_jax.weights.positions import resize_bias_table
from beit_jax.weights.pytorch import export
from beit_jax.weights.pytorch.facts import _huggingface_head, metadata
from beit_jax.weights.pytorch.importer import convert, examine
from tests import torch_segmenters
from tests.tools.call import call
from tests.torch_models import keep_indices
from tests.weights.pytorch.small_models import copy, copy_with
from tests.weights.pytorch.test_facts import STRANGE

SIZES = {
    'width': 32,
    'depth': 4,
    'heads': 2,
    'hidden': 37,
    'patch_size': 3,
    'side': 15,
    'classes': 7,
}
IMAGENET = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
pytestmark = pytest.mark.filterwarnings('ignore:.*(assumed|is taken as transformers takes it)')


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """(A segmenter of transformers, its folder)."""
    sizes, directory = SIZES | {'taps': (-1, 0, 1, 2)}, tmp_path_factory.mktemp('hub')
    model = torch_segmenters.make_transformers_segmenter('layer_bias', **sizes)
    model.save_pretrained(directory)
    processor = transformers.BeitImageProcessorPil(
        size={'height': 15, 'width': 15},
        image_mean=IMAGENET[0].tolist(),
        image_std=IMAGENET[1].tolist(),
        do_reduce_labels=True,
    )
    processor.save_pretrained(directory)
    return model, directory


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """(An official segmenter, the file that mmcv would have saved)."""
    sizes = SIZES | {'taps': (0, 1, 2, 3)}
    model = keep_indices(torch_segmenters.make_official_segmenter('layer_bias', **sizes))
    path = tmp_path_factory.mktemp('official') / 'iter_160000.pth'
    meta = {
        'CLASSES': ('wall', *'abcdef'),
        'PALETTE': [[1, 2, 3]] * 7,
        'config': 'backbone=dict(\n  out_indices=[0, 1,\n 2, 3])',
    }
    optimizer = {'state': {0: {'step': 5}}, 'param_groups': []}
    beside = {'meta': meta | {'iter': 160000}, 'optimizer': optimizer}
    torch.save({'state_dict': model.state_dict()} | beside, path)
    return model, path


def check_logits(theirs, ours, height, width):
    images = np.random.default_rng(1).random((2, height, width, 3), np.float32)
    mean, std = np.float32(ours.architecture['mean']), np.float32(ours.architecture['std'])
    pixels = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = theirs(pixels)
        logits = logits[0] if isinstance(logits, tuple) else logits.logits
        expected = torch.nn.functional.interpolate(
            logits, size=(height, width), mode='bilinear', align_corners=False
        )
    expected, found = expected.permute(0, 2, 3, 1).numpy(), np.asarray(ours.segment(images))
    assert found.shape == expected.shape and expected.std() > 0.3
    assert np.abs(found - expected).max() < 1e-4


def same_bits(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


def load_from_transformers(directory):
    """The model, which must take every tensor."""
    model, report = transformers.BeitForSemanticSegmentation.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def test_transformers(hub, tmp_path):
    theirs, directory = hub
    ours = beit_jax.load(directory)
    assert ours.architecture['head']['taps'] == (-1, 0, 1, 2) and ours.classes[6] == 'kind 6'
    assert ours.architecture['reduce_zero_label']
    np.testing.assert_allclose(ours.architecture['mean'], IMAGENET[0], rtol=1e-6)
    check_logits(theirs, ours, 15, 15)
    call(import_weights, input=directory, output=tmp_path / 'ours')
    call(export_weights, input=tmp_path / 'ours', format='huggingface', output=tmp_path / 'back')
    model = load_from_transformers(tmp_path / 'back')
    same_bits(model.state_dict(), theirs.state_dict())
    files = tmp_path / 'back/model.safetensors', directory / 'model.safetensors'
    same_bits(*map(safetensors.torch.load_file, files))
    ignored = {'_name_or_path': None, 'drop_path_rate': None}
    assert model.config.to_dict() | ignored == theirs.config.to_dict() | ignored
    processor = transformers.BeitImageProcessorPil.from_pretrained(tmp_path / 'back')
    wanted = transformers.BeitImageProcessorPil.from_pretrained(directory)
    for name in (
        'size',
        'image_mean',
        'image_std',
        'do_reduce_labels',
        'do_resize',
        'do_center_crop',
        'do_rescale',
        'do_normalize',
    ):
        assert getattr(processor, name) == getattr(wanted, name), name
    assert 'pipeline_tag: image-segmentation' in (tmp_path / 'back/README.md').read_text()


def test_official(official, tmp_path, capsys):
    """And from there to transformers, which gets an empty block, for it cannot tap the last one."""
    theirs, path = official
    ours = beit_jax.load(path)
    assert ours.classes[0] == 'wall' and list(ours.architecture['head']['taps']) == [0, 1, 2, 3]
    np.testing.assert_allclose(
        [ours.architecture['mean'], ours.architecture['std']], IMAGENET, rtol=1e-6
    )
    check_logits(theirs, ours, 15, 15)
    inspect_weights.run(inspect_weights._arguments().parse_args([str(path)]))
    assert in_words(ours.architecture)[0] in capsys.readouterr().out
    call(export_weights, input=path, format='unilm', output=tmp_path / 'unilm')
    state = torch.load(tmp_path / 'unilm/model.pth', weights_only=True)['state_dict']
    same_bits(state, theirs.state_dict())
    state = safetensors.torch.load_file(tmp_path / 'unilm/model.safetensors')
    same_bits(state, theirs.state_dict())
    # taps and pools are in the header
    assert examine(tmp_path / 'unilm/model.safetensors').architecture == examine(path).architecture
    short = ours.architecture | {'head': {'auxiliary_channels': 5}}  # as a run may describe it
    assert metadata(short, ()) == metadata(ours.architecture, ())
    call(export_weights, input=path, format='huggingface', output=tmp_path / 'hub')
    model = load_from_transformers(tmp_path / 'hub')
    assert model.config.num_hidden_layers == 5 and model.config.out_indices == [2, 3, 4, 5]
    check_logits(model, ours, 15, 15)
    back = examine(tmp_path / 'hub')
    assert not back.problems and back.architecture['depth'] == 4
    np.testing.assert_equal(convert(back)[0], jax.tree.map(np.asarray, ours.params))


def test_pictures_of_any_size(official):
    """Positions are those of a larger grid, and borders are filled up with the mean colour."""
    theirs, path = official
    model, sizes = load_model(path), SIZES | {'side': (15, 24), 'taps': (0, 1, 2, 3)}
    larger = keep_indices(torch_segmenters.OfficialSegmenter('layer_bias', **sizes).eval())
    state = larger.state_dict()
    for name, value in theirs.state_dict().items():
        if name.endswith('bias_table'):
            resized = resize_bias_table(value.numpy(), (5, 5), (5, 8))
            state[name] = torch.tensor(np.asarray(resized))
        elif not name.endswith('position_index'):
            state[name] = value
    larger.load_state_dict(state)
    check_logits(larger, model, 15, 24)
    images = np.random.default_rng(0).integers(0, 256, (2, 14, 22, 3), np.uint8)
    filled = np.full((2, 15, 24, 3), IMAGENET[0], np.float32)
    filled[:, :14, :22] = images / np.float32(255)
    np.testing.assert_allclose(model.segment(images), model.segment(filled)[:, :14, :22], atol=1e-4)
    for call_, message in (
        (lambda: model.logits(images), 'classifies pixels'),
        (lambda: model.segment(images[0]), 'images of shape'),
        (lambda: model.tokens(images), 'predicts no tokens'),
    ):
        with pytest.raises(RequestError, match=message):
            call_()


def test_what_taps_are(hub, tmp_path):
    """Indices as transformers counts them, from either end.

    What only another program means by them is said.
    """

    def read(**config):
        return _huggingface_head({'num_hidden_layers': 12, **config})

    for indices, taps in (
        ([1, 2, 3, 4], (-1, 0, 1, 2)),
        ([0, 1, 2, 4], (11, -1, 0, 2)),
        ([1, 2, 3, -1], (-1, 0, 1, 10)),
        ([5, 7, 9, 13], (3, 5, 7, 11)),
    ):
        assert read(out_indices=indices) == ({'taps': taps, 'pool_scales': None}, [])
    head, notes = read(segmentation_indices=[3, 5, 7, 11], pool_scales=[1, 2])
    assert head == {'taps': (1, 3, 5, 9), 'pool_scales': (1, 2)}
    assert 'blocks [1, 3, 5, 9] from 0 are tapped' in notes[0]
    assert 'want [5, 7, 9, 13] there' in notes[0]
    names = 'out_indices', 'pool_scales', 'num_hidden_layers'
    for name, value in itertools.product(names, STRANGE):
        try:
            head, _ = read(**{'out_indices': [1, 2, 3, 4]} | {name: value})
        except RequestError as error:
            assert len(str(error)) < 300
        else:
            for values in head.values():
                assert values is None or {type(one) for one in values} == {int}
    config = json.loads((hub[1] / 'config.json').read_text())
    del config['out_indices']
    found = examine(copy_with(hub[1], tmp_path, config))
    assert found.architecture['head']['taps'] == (0, 1, 2, 3)
    assert 'blocks are tapped: [0, 1, 2, 3] from 0 are assumed' in ' '.join(found.notes)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'pool_scales': [1, 2]}, 'unexpected: .decode_head.psp_modules.2'),
        ({'pool_scales': [1, 'x']}, "pool_scales is 'x', not a number"),
        ({'out_indices': [1, 2]}, r'out_indices is \[1, 2\]: a segmenter has four'),
        ({'out_indices': [1, 2, 3, 9]}, 'has 5 hidden states'),
        ({'out_indices': 3}, 'out_indices is 3'),
        ({'auxiliary_num_convs': 2}, 'auxiliary_num_convs 2, the tensors 1'),
        ({'use_auxiliary_head': False}, 'use_auxiliary_head False'),
        ({'num_hidden_layers': 5}, 'num_hidden_layers 5, the tensors 4'),
    ],
)
def test_bad_json(hub, change, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        convert(examine(copy(hub[1], tmp_path, **change)))


@pytest.mark.parametrize(
    ('drop', 'add', 'message'),
    [
        (
            ('decode_head.bottleneck.bn.running_var',),
            {},
            r'missing: decode_head.bottleneck.bn.running_var \[32\]',
        ),
        (
            ('backbone.fpn1.0.weight',),
            {'backbone.fpn3.0.weight': torch.ones(2)},
            r"unexpected: 'backbone.fpn3.0.weight'",
        ),
        (
            (),
            {'decode_head.conv_seg.weight': torch.ones(7, 32, 3, 3)},
            r'decode_head.conv_seg.weight is \[7, 32, 3, 3\], expected \[7, 32, 1, 1\]',
        ),
        (
            (),
            {'decode_head.fpn_bottleneck.bn.num_batches_tracked': torch.ones(2)},
            'num_batches_tracked',
        ),
        (('decode_head.',), {}, 'has a backbone and no decode_head'),
    ],
)
def test_bad_tensors(official, drop, add, message, tmp_path):
    state = official[0].state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith(drop)}
    torch.save({'state_dict': kept | add}, tmp_path / 'bad.pth')
    with pytest.raises(RequestError, match=message):
        convert(examine(tmp_path / 'bad.pth'))


def test_what_no_library_has(official):
    architecture = examine(official[1]).architecture
    with pytest.raises(RequestError, match='timm has no segmentation models'):
        export.to_tensors({}, architecture, 'timm')
    for head, message in (
        ({'taps': (0, 0, 1, 2)}, 'four different'),
        ({'auxiliary_tap': 1}, 'on level 1'),
        ({'channels': 5}, 'has 5 channels'),
    ):
        changed = architecture | {'head': architecture['head'] | head}
        with pytest.raises(RequestError, match=message):
            export.to_tensors({}, changed, 'huggingface')
