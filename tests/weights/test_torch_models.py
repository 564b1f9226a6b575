"""What a file of weights is found to be, in every form it comes in, and what is refused."""

import argparse
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from beit_jax.errors import RequestError
from beit_jax.tools import import_weights
from beit_jax.weights import names
from beit_jax.weights.models import load_model
from beit_jax.weights.torch_models import convert, examine
from tests import torch_models

SIZES = {'width': 128, 'depth': 2, 'heads': 2, 'hidden': 200, 'side': 80}
PRETRAINED = SIZES | {'positions': 'shared_bias', 'vocabulary': 101}
CLASSIFIER = SIZES | {'positions': 'layer_bias', 'classes': 7}


@pytest.fixture(scope='module')
def state():
    """The official code's pre-trained model."""
    return torch_models.keep_indices(torch_models.make_timm(**PRETRAINED)).state_dict()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A classifier of transformers."""
    directory = tmp_path_factory.mktemp('classifier')
    torch_models.make_transformers(**CLASSIFIER).save_pretrained(directory)
    torch_models.transformers.BeitImageProcessorPil(
        size={'height': 80, 'width': 80}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(directory)
    return directory


def copy(folder, directory, **changed):
    """The folder with entries of its config.json changed."""
    directory.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / 'config.json').read_text()) | changed
    (directory / 'config.json').write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize('dialect', names.DIALECTS)
@pytest.mark.parametrize('head', names.HEADS)
def test_the_table_is_its_own_inverse(dialect, head):
    paths = [row[0] for row in names.ENCODER + names.HEADS[head]]
    paths += [f'encoder/blocks/{i:02d}/{row[0]}' for row in names.BLOCK for i in (0, 7, 23)]
    theirs = [names.to_name(path, dialect, head) for path in paths]
    assert (
        len(set(theirs)) == len(paths)
        and [names.to_path(name, dialect, head) for name in theirs] == paths
    )
    for name in (
        'blocks.007.norm1.weight',
        'blocks.1.norm3.weight',
        'beit.encoder.layer.1',
        'head',
        '',
    ):
        assert names.to_path(name, dialect, head) is None


def test_forms(state, tmp_path):
    """One model in every kind of file, with the same parameters."""
    expected, _ = convert(examine(save(state, tmp_path / 'zip.pth')))
    torch.save({'module': state}, tmp_path / 'legacy.pt', _use_new_zipfile_serialization=False)
    torch.save(
        {f'module.{name}': value for name, value in state.items()}, tmp_path / 'parallel.bin'
    )
    safetensors.torch.save_file(state, tmp_path / 'safe.safetensors')
    for sharded, suffix, write in (
        ('a', 'safetensors', safetensors.torch.save_file),
        ('b', 'bin', torch.save),
    ):
        directory, half = tmp_path / sharded, len(state) // 2
        directory.mkdir()
        stem = {'safetensors': 'model', 'bin': 'pytorch_model'}[suffix]
        parts = {
            f'{stem}-0000{i}-of-00002.{suffix}': dict(list(state.items())[part])
            for i, part in enumerate((slice(half), slice(half, None)))
        }
        for name, part in parts.items():
            write(part, directory / name)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (directory / f'{stem}.{suffix}.index.json').write_text(
            json.dumps({'metadata': {'total_size': 1}, 'weight_map': weight_map})
        )
    for path in (
        'legacy.pt',
        'parallel.bin',
        'safe.safetensors',
        'a',
        'b',
        'a/model.safetensors.index.json',
    ):
        found = examine(tmp_path / path)
        assert found.dialect == 'unilm' and not found.problems
        np.testing.assert_equal(convert(found)[0], expected)
    (tmp_path / 'b' / 'pytorch_model-00001-of-00002.bin').unlink()
    with pytest.raises(
        RequestError, match=r'names pytorch_model-00001-of-00002\.bin, which is not there'
    ):
        examine(tmp_path / 'b')


def save(tensors, path, **beside):
    torch.save({'model': tensors} | beside, path)
    return path


def test_what_a_transformers_folder_says(folder, tmp_path):
    found = examine(folder)
    assert found.dialect == 'huggingface' and not found.problems
    assert found.classes == tuple(f'kind {i}' for i in range(7))
    assert (
        found.architecture
        | {
            'mean': [0.4, 0.5, 0.6],
            'norm_eps': 1e-12,
            'heads': 2,
            'grid': [5, 5],
            'pooling': 'mean',
            'positions': 'layer_bias',
            'num_classes': 7,
            'crop': 0.875,
        }
        == found.architecture
    )
    assert any(
        'the central 0.875 of the shorter side becomes 80 pixels' in note for note in found.notes
    )
    # the JSON beside it is read
    assert examine(folder / 'model.safetensors').architecture == found.architecture
    strange = copy(
        folder,
        tmp_path / 'strange',
        num_attention_heads=4,
        hidden_act='relu',
        image_size=[80, 80],
        intermediate_size=201,
    )
    problems = ' '.join(examine(strange).problems)
    assert all(
        text in problems
        for text in (
            "hidden_act 'relu', the tensors 'gelu'",
            'intermediate_size 201, the tensors 200',
            'relative_position_bias_table is [84, 2], expected [84, 4]',
        )
    )
    assert 'image_size' not in problems


def test_defaults_of_transformers(tmp_path):
    """config.json may leave out what is at its default: 12 heads and eps 1e-12 among them."""
    model = torch_models.make_transformers(
        **SIZES | {'positions': 'absolute', 'width': 96, 'heads': 12, 'classes': 3}
    )
    model.save_pretrained(tmp_path / 'all')
    config = json.loads((tmp_path / 'all' / 'config.json').read_text())
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
    (tmp_path / 'all' / 'config.json').write_text(json.dumps({name: config[name] for name in kept}))
    found = examine(tmp_path / 'all')
    assert not found.problems and (found.architecture['heads'], found.architecture['norm_eps']) == (
        12,
        1e-12,
    )
    (tmp_path / 'all' / 'config.json').write_text(
        json.dumps({name: config[name] for name in kept if name != 'hidden_size'})
    )
    assert 'config.json says hidden_size 768, the tensors 96' in examine(tmp_path / 'all').problems


@pytest.mark.parametrize(
    ('processor', 'mean', 'std', 'crop'),
    [
        (
            {'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.4, 0.5, 0.6]},
            [0.1, 0.2, 0.3],
            [0.4, 0.5, 0.6],
            0.875,
        ),
        ({'do_normalize': False, 'image_mean': [0.1, 0.2, 0.3]}, [0.0] * 3, [1.0] * 3, 0.875),
        (
            {'rescale_factor': 1 / 127.5, 'image_mean': [1.0] * 3, 'image_std': [1.0] * 3},
            [0.5] * 3,
            [0.5] * 3,
            0.875,
        ),
        (
            {'do_rescale': False, 'image_mean': [127.5] * 3, 'image_std': [51.0] * 3},
            [0.5] * 3,
            [0.2] * 3,
            0.875,
        ),
        (
            {
                'do_center_crop': True,
                'size': {'shortest_edge': 100},
                'crop_size': {'height': 80, 'width': 80},
            },
            [0.5] * 3,
            [0.5] * 3,
            0.8,
        ),
        ({'do_center_crop': True, 'size': 100, 'crop_size': 80}, [0.5] * 3, [0.5] * 3, 0.8),
        (
            {'do_center_crop': True, 'size': {'height': 100, 'width': 100}, 'crop_size': 80},
            [0.5] * 3,
            [0.5] * 3,
            0.875,
        ),
        ({'do_center_crop': True, 'size': 100, 'crop_size': 60}, [0.5] * 3, [0.5] * 3, 0.875),
    ],
)
def test_processors(folder, processor, mean, std, crop, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    found = examine(tmp_path)
    np.testing.assert_allclose(
        [found.architecture['mean'], found.architecture['std']], [mean, std], rtol=1e-6
    )
    assert found.architecture['crop'] == crop and (
        'as BEiT was evaluated' in ' '.join(found.notes)
    ) == (crop == 0.875)


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
ENTRIES = [
    ('config.json', name)
    for name in (
        'num_attention_heads',
        'layer_norm_eps',
        'layer_scale_init_value',
        'id2label',
        'architectures',
        'image_size',
        'hidden_size',
        'model_type',
    )
]
ENTRIES += [
    ('preprocessor_config.json', name)
    for name in (
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
]


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
    assert (
        a['heads'] == 2
        and 0 <= a['norm_eps'] <= 1
        and a['layer_scale'] > 0
        and 0 < a['crop'] <= 1
        and a['num_classes'] == 7
    )
    assert (
        all(np.isfinite(a['mean'])) and min(a['std']) > 0 and len(a['mean']) == len(a['std']) == 3
    )
    assert all(isinstance(name, str) for name in found.classes)


@pytest.mark.parametrize(
    'name', ['model_args', 'pretrained_cfg', 'num_classes', 'label_names', 'crop_pct', 'mean']
)
def test_strange_json_of_timm(name, tmp_path):
    safetensors.torch.save_model(
        torch_models.make_timm(**CLASSIFIER), str(tmp_path / 'model.safetensors')
    )
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
    assert examine(copy(folder, tmp_path, id2label=labels)).classes == (
        'kind 0',
        'kind 1',
        'kind 2',
        'kind 3',
        'kind 5',
        'kind 9',
        'kind 10',
    )
    assert (
        '6 classes are named, the head has 7'
        in examine(copy(folder, tmp_path, id2label=dict(list(labels.items())[1:]))).problems
    )


def test_settings_of_the_official_code(state, tmp_path):
    args = argparse.Namespace(
        imagenet_default_mean_and_std=True, layer_scale_init_value=1e-5, nothing=None
    )
    found = examine(save(state, tmp_path / 'a.pth', args=args))
    assert (
        found.architecture['mean'] == [0.485, 0.456, 0.406]
        and found.architecture['layer_scale'] == 1e-5
        and not found.notes
    )
    # its train.py
    timm = argparse.Namespace(mean=None, std=None, crop_pct=None, classes=3, heads='x')
    assert not examine(save(state, tmp_path / 'b.pth', args=timm)).problems
    assert (
        examine(
            save(state, tmp_path / 'c.pth', args=argparse.Namespace(crop_pct=1.0))
        ).architecture['crop']
        == 1.0
    )
    assert examine(
        save(state, tmp_path / 'd.pth', args=argparse.Namespace(layer_scale_init_value='x'))
    ).problems
    averaged = examine(save(state, tmp_path / 'e.pth', model_ema=state))
    assert 'model_ema, other weights in the file, is not used' in averaged.notes
    torch.save(
        {'state_dict_ema': {f'_orig_mod.{name}': value for name, value in state.items()}},
        tmp_path / 'f.pth',
    )
    assert not examine(tmp_path / 'f.pth').problems
    given = examine(tmp_path / 'f.pth', [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert given.architecture['std'] == [0.4, 0.5, 0.6] and not given.notes
    torch.save({'model': state}, tmp_path / 'beitv2_base.pth')
    assert examine(tmp_path / 'beitv2_base.pth').architecture['mean'] == [0.485, 0.456, 0.406]
    named = examine(save(state, tmp_path / 'beit_base_patch16_224_pt22k.pth'))
    assert (
        named.source.released.hub == 'microsoft/beit-base-patch16-224-pt22k'
        and named.architecture['mean'] == [0.5] * 3
        and not named.notes
    )


@pytest.mark.parametrize('kind', ['float16', 'bfloat16', 'float64'])
def test_other_numbers_are_converted_with_a_line(state, kind, tmp_path):
    dtype = getattr(torch, kind)
    half = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    found = examine(save(half, tmp_path / 'half.pth'))
    count = sum(value.is_floating_point() for value in state.values())
    assert f'{count} tensors of {kind} are converted to float32' in found.notes
    params, _ = convert(found)
    expected = state['norm.weight'].to(dtype).float().numpy()
    assert params['head']['norm']['scale'].dtype == np.float32
    np.testing.assert_array_equal(params['head']['norm']['scale'], expected)


def changed(state, *, rename=None, drop=(), **replaced):
    state = {name: value for name, value in state.items() if name not in drop} | {
        name.replace('__', '.'): value for name, value in replaced.items()
    }
    return {(rename or {}).get(name, name): value for name, value in state.items()}


def test_forged_sizes(state, tmp_path):
    """A tensor without numbers, or with sizes that no other has, costs no memory."""
    for name, shape, message in (
        ('blocks.0.norm1.weight', (10**7, 0), r'blocks.0.norm1.weight is \[10000000, 0\]'),
        (
            'rel_pos_bias.relative_position_bias_table',
            ((2 * 10**5 - 1) ** 2 + 3, 0),
            'of no square grid',
        ),
        (
            'patch_embed.proj.weight',
            (128, 3, 0, 0),
            'the patch embedding, a convolution, is missing',
        ),
        ('blocks.0.attn.qkv.weight', (3, 0), r'is \[3, 0\], expected \[384, 128\]'),
    ):
        with pytest.raises(RequestError, match=message):
            convert(
                examine(
                    save(
                        changed(state, **{name.replace('.', '__'): torch.empty(shape)}),
                        tmp_path / 'a.pth',
                    )
                )
            )
    for dtype, message in ((torch.complex64, 'not real numbers'), (torch.bool, 'not real numbers')):
        bad = changed(state, lm_head__bias=state['lm_head.bias'].to(dtype))
        safetensors.torch.save_file(bad, tmp_path / 'b.safetensors')
        with pytest.raises(RequestError, match=message):
            convert(examine(tmp_path / 'b.safetensors'))
    safetensors.torch.save_file(
        changed(state, lm_head__bias=state['lm_head.bias'].to(torch.float8_e4m3fn)),
        tmp_path / 'c.safetensors',
    )
    with pytest.raises(RequestError, match='of a type that is no type of weights'):
        examine(tmp_path / 'c.safetensors')


def test_every_fault_is_named_at_once(state, tmp_path):
    poisoned = state['lm_head.weight'].clone()
    poisoned[3, 5] = np.nan
    index = state['rel_pos_bias.relative_position_index'].clone()
    index[2, 3] = 0
    damaged = changed(
        state,
        rename={'blocks.1.norm2.weight': 'blocks.1.norm3.weight'},
        drop=('blocks.0.gamma_2', 'cls_token'),
        **{
            'blocks__0__mlp__fc1__weight': state['blocks.0.mlp.fc1.weight'].T.contiguous(),
            'lm_head__weight': poisoned,
            'rel_pos_bias__relative_position_index': index,
            'blocks__1__attn__proj__bias': torch.arange(128),
        },
    )
    found = examine(save(damaged, tmp_path / 'damaged.pth'))
    assert set(found.problems) == {
        "unexpected: 'blocks.1.norm3.weight' [128]",
        'missing: blocks.1.norm2.weight [128]',
        'missing: blocks.0.gamma_2 [128]',
        'missing: cls_token [1, 1, 128]',
        'blocks.0.mlp.fc1.weight is [128, 200], expected [200, 128], its transpose',
        'lm_head.weight has 1 numbers that are NaN or infinite',
        'blocks.1.attn.proj.bias holds int64, not real numbers',
        'rel_pos_bias.relative_position_index is not the index of a grid of 5 x 5 patches',
    }
    with pytest.raises(RequestError, match=r'8 things are wrong:(\n  .*){8}$'):
        load_model(tmp_path / 'damaged.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'drop': ('blocks.1.attn.qkv.weight',)},
            r'missing: blocks.1.attn.qkv.weight \[384, 128\]',
        ),
        (
            {'blocks__0__attn__qkv__weight': torch.ones(128, 384)},
            r'blocks.0.attn.qkv.weight is .*, expected \[384, 128\]',
        ),
        ({'drop': ('patch_embed.proj.weight',)}, 'the size of the patches cannot be told'),
        (
            {'patch_embed__proj__weight': torch.ones(128, 1, 16, 16)},
            'not for square patches of three colours',
        ),
        ({'drop': ('rel_pos_bias.relative_position_bias_table',)}, 'positions of 0 kinds'),
        ({'pos_embed': torch.ones(1, 26, 128)}, 'positions of 2 kinds'),
        (
            {'blocks__170__norm1__weight': torch.ones(128)},
            'it has 3 blocks, the last one is block 170',
        ),
        (
            {'blocks__900__norm1__weight': torch.ones(128)},
            'it has 3 blocks, the last one is block 900',
        ),
        (
            {'rel_pos_bias__relative_position_bias_table': torch.ones(84, 3)},
            'its width 128 is no multiple of its 3 heads',
        ),
        ({'rel_pos_bias__relative_position_bias_table': torch.ones(80, 2)}, 'of no square grid'),
        (
            {'rename': {'patch_embed.proj.weight': 'blocks.0.attn.qkv.bias'}},
            'is a ViT or DeiT, not a BEiT: it has blocks.0.attn.qkv.bias',
        ),
        ({'dist_token': torch.ones(1, 1, 128)}, 'is a ViT or DeiT'),
    ],
)
def test_bad_files(state, change, message, tmp_path):
    path = save(changed(state, **change), tmp_path / 'bad.pth')
    with pytest.raises(RequestError, match=message):
        convert(examine(path))


def test_what_is_no_beit(folder, state, tmp_path):
    (tmp_path / 'empty').mkdir()
    for path, content, message in (
        (
            'a.pth',
            b'\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.',
            'plain pickle|names posix',
        ),
        (
            'a.safetensors',
            (folder / 'model.safetensors').read_bytes()[:-5],
            'cannot be read as safetensors .*truncated',
        ),
        ('b.safetensors', b'', 'cannot be read as safetensors'),
        ('b.bin', b'PK\x03\x04 nothing', 'damaged or truncated'),
        ('c/config.json', b'{}', 'holds neither a checkpoint nor a file of weights'),
        ('nowhere', None, 'no such file or folder'),
        ('d/model.safetensors.index.json', b'{"weight_map": {"a": "../a"}}', 'has no weight_map'),
    ):
        if content is not None:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(content)
        with pytest.raises(RequestError, match=message):
            examine(tmp_path / (path if '/' not in path else path[0]))
    torch.save({'fc.weight': torch.ones(3, 5)}, tmp_path / 'resnet.pth')
    with pytest.raises(RequestError, match=r"tensors are called 'fc\.weight', \.\.\."):
        examine(tmp_path / 'resnet.pth')
    with pytest.raises(RequestError, match="says that it is a 'vit', not a BEiT"):
        examine(copy(folder, tmp_path / 'vit', model_type='vit'))
    vit = torch_models.transformers.ViTModel(
        torch_models.transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=20,
            patch_size=4,
        )
    )
    safetensors.torch.save_model(vit, str(tmp_path / 'vit.safetensors'))
    vit.save_pretrained(tmp_path / 'vit_folder')
    for path in ('vit.safetensors', 'vit_folder/model.safetensors'):
        with pytest.raises(RequestError, match=r'is a ViT or DeiT|not a BEiT'):
            examine(tmp_path / path)
    safetensors.numpy.save_file(
        {name: value.numpy() for name, value in state.items()}
        | {'lm_head.bias': np.ones(101, ml_dtypes.bfloat16)},
        tmp_path / 'mixed.safetensors',
    )
    assert (
        '1 tensors of bfloat16 are converted to float32'
        in examine(tmp_path / 'mixed.safetensors').notes
    )


def test_nothing_is_written_half(state, tmp_path):
    path = save(changed(state, drop=('lm_head.bias',)), tmp_path / 'bad.pth')
    options = import_weights._arguments().parse_args(
        ['--input', str(path), '--output', str(tmp_path / 'out')]
    )
    with pytest.raises(RequestError, match=r'missing: lm_head.bias \[101\]'):
        import_weights.run(options)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['bad.pth']
    options.input = str(save(state, tmp_path / 'good.pth'))
    import_weights.run(options)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['bad.pth', 'good.pth', 'out']
    with pytest.raises(RequestError, match='is there already'):
        import_weights.run(options)
