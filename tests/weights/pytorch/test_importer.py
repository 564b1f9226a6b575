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
from beit_jax.weights.models import load_model
from beit_jax.weights.pytorch.importer import convert, examine
from tests import torch_models
from tests.tools.call import call
from tests.weights.pytorch.small_models import copy, save


def write_shards(state, directory, stem, suffix, write):
    """Two files and their index."""
    directory.mkdir()
    items, half = list(state.items()), len(state) // 2
    weight_map = {}
    for i, part in enumerate((items[:half], items[half:])):
        name = f'{stem}-0000{i}-of-00002.{suffix}'
        write(dict(part), directory / name)
        weight_map |= {tensor: name for tensor, _ in part}
    index = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
    (directory / f'{stem}.{suffix}.index.json').write_text(json.dumps(index))


def test_forms(state, tmp_path):
    """One model in every kind of file, with the same parameters."""
    expected, _ = convert(examine(save(state, tmp_path / 'zip.pth')))
    torch.save({'module': state}, tmp_path / 'legacy.pt', _use_new_zipfile_serialization=False)
    parallel = {f'module.{name}': value for name, value in state.items()}
    torch.save(parallel, tmp_path / 'parallel.bin')
    safetensors.torch.save_file(state, tmp_path / 'safe.safetensors')
    write_shards(state, tmp_path / 'a', 'model', 'safetensors', safetensors.torch.save_file)
    write_shards(state, tmp_path / 'b', 'pytorch_model', 'bin', torch.save)
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
    message = r'names pytorch_model-00001-of-00002\.bin, which is not there'
    with pytest.raises(RequestError, match=message):
        examine(tmp_path / 'b')


@pytest.mark.parametrize('kind', ['float16', 'bfloat16', 'float64'])
def test_other_numbers_are_converted_with_a_line(state, kind, tmp_path):
    dtype, half, count = getattr(torch, kind), {}, 0
    for name, value in state.items():
        half[name] = value.to(dtype) if value.is_floating_point() else value
        count += value.is_floating_point()
    found = examine(save(half, tmp_path / 'half.pth'))
    assert f'{count} tensors of {kind} are converted to float32' in found.notes
    params, _ = convert(found)
    expected = state['norm.weight'].to(dtype).float().numpy()
    assert params['head']['norm']['scale'].dtype == np.float32
    np.testing.assert_array_equal(params['head']['norm']['scale'], expected)


def test_pretraining_of_beit_v2(state, tmp_path):
    """Its layers for CLS are read; the rest is what it is without them. Of a model that is
    fine-tuned they are left out aloud."""
    expected, _ = convert(examine(save(state, tmp_path / 'plain.pth')))
    more = {}
    for name, value in state.items():
        if name.startswith('blocks.1.'):
            more[name.replace('blocks.1.', 'cls_pt_layers.0.')] = torch.randn(value.shape)
    found = examine(save(state | more, tmp_path / 'beitv2_base_patch16_224_pt1k.pth'))
    assert not found.problems and found.architecture['mean'] == [0.485, 0.456, 0.406]
    assert found.architecture['cls_head'] == {'layers': 1, 'early': 1, 'shared': True}
    params, _ = convert(found)
    fc1 = params.pop('cls_head')['layers']['00']['mlp']['fc1']['kernel']
    np.testing.assert_array_equal(fc1.T, more['cls_pt_layers.0.mlp.fc1.weight'])
    np.testing.assert_equal(params, expected)
    told = save(state | more, tmp_path / 'told.pth', args=argparse.Namespace(early_layers=2))
    assert 'beyond the 2 blocks' in examine(told).problems[0]
    partial = examine(save(state | more | {'cls_pt_norm.bias': torch.ones(128)}, told))
    assert 'missing: cls_pt_lm_head.weight [101, 128]' in partial.problems
    tuned = {name: value for name, value in state.items() if 'lm_head' not in name} | more
    notes = examine(save(tuned, tmp_path / 'tuned.pth')).notes
    assert any(note.startswith(f'the {len(more)} tensors cls_pt_* of BEiT v2') for note in notes)


def test_numbers_of_several_kinds(state, tmp_path):
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays['lm_head.bias'] = np.ones(101, ml_dtypes.bfloat16)
    safetensors.numpy.save_file(arrays, tmp_path / 'mixed.safetensors')
    notes = examine(tmp_path / 'mixed.safetensors').notes
    assert '1 tensors of bfloat16 are converted to float32' in notes


def changed(state, *, rename=None, drop=(), **replaced):
    """Names of what is replaced have __ for a dot."""
    state = {name: value for name, value in state.items() if name not in drop}
    state |= {name.replace('__', '.'): value for name, value in replaced.items()}
    return {(rename or {}).get(name, name): value for name, value in state.items()}


@pytest.mark.parametrize(
    ('name', 'shape', 'message'),
    [
        ('blocks__0__norm1__weight', (10**7, 0), r'blocks.0.norm1.weight is \[10000000, 0\]'),
        (
            'rel_pos_bias__relative_position_bias_table',
            ((2 * 10**5 - 1) ** 2 + 3, 0),
            'of no square grid',
        ),
        (
            'patch_embed__proj__weight',
            (128, 3, 0, 0),
            'the patch embedding, a convolution, is missing',
        ),
        ('blocks__0__attn__qkv__weight', (3, 0), r'is \[3, 0\], expected \[384, 128\]'),
    ],
)
def test_forged_sizes(state, name, shape, message, tmp_path):
    """A tensor without numbers, or with sizes that no other has, costs no memory."""
    forged = changed(state, **{name: torch.empty(shape)})
    with pytest.raises(RequestError, match=message):
        convert(examine(save(forged, tmp_path / 'a.pth')))


@pytest.mark.parametrize(
    ('dtype', 'message'),
    [
        (torch.complex64, 'not real numbers'),
        (torch.bool, 'not real numbers'),
        (torch.float8_e4m3fn, 'of a type that is no type of weights'),
    ],
)
def test_what_is_no_number(state, dtype, message, tmp_path):
    bad = changed(state, lm_head__bias=state['lm_head.bias'].to(dtype))
    safetensors.torch.save_file(bad, tmp_path / 'b.safetensors')
    with pytest.raises(RequestError, match=message):
        convert(examine(tmp_path / 'b.safetensors'))


def test_every_fault_is_named_at_once(state, tmp_path):
    poisoned = state['lm_head.weight'].clone()
    poisoned[3, 5] = np.nan
    index = state['rel_pos_bias.relative_position_index'].clone()
    index[2, 3] = 0
    damaged = changed(
        state,
        rename={'blocks.1.norm2.weight': 'blocks.1.norm3.weight'},
        drop=('blocks.0.gamma_2', 'cls_token'),
        blocks__0__mlp__fc1__weight=state['blocks.0.mlp.fc1.weight'].T.contiguous(),
        lm_head__weight=poisoned,
        rel_pos_bias__relative_position_index=index,
        blocks__1__attn__proj__bias=torch.arange(128),
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


QKV, TABLE = 'blocks.1.attn.qkv.weight', 'rel_pos_bias.relative_position_bias_table'
KEY_BIAS = 'blocks.0.attn.qkv.bias'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'drop': (QKV,)}, r'missing: blocks.1.attn.qkv.weight \[384, 128\]'),
        (
            {'blocks__0__attn__qkv__weight': torch.ones(128, 384)},
            r'blocks.0.attn.qkv.weight is .*, expected \[384, 128\]',
        ),
        ({'drop': ('patch_embed.proj.weight',)}, 'the size of the patches cannot be told'),
        (
            {'patch_embed__proj__weight': torch.ones(128, 3, 16, 8)},
            'not for square patches',
        ),
        ({'drop': (TABLE,)}, 'positions of 0 kinds'),
        (
            {'blocks__0__attn__relative_position_bias_table': torch.ones(84, 2)},
            'positions of 2 kinds',
        ),
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
            {'rename': {'patch_embed.proj.weight': KEY_BIAS}},
            'is a ViT or DeiT, not a BEiT: it has blocks.0.attn.qkv.bias',
        ),
        ({'dist_token': torch.ones(1, 1, 128)}, 'is a ViT or DeiT'),
    ],
)
def test_bad_files(state, change, message, tmp_path):
    path = save(changed(state, **change), tmp_path / 'bad.pth')
    with pytest.raises(RequestError, match=message):
        convert(examine(path))


INDEX = 'd/model.safetensors.index.json'
OS_SYSTEM = b'\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.'


@pytest.mark.parametrize(
    ('path', 'content', 'message'),
    [
        ('a.pth', OS_SYSTEM, 'plain pickle|names posix'),
        ('b.safetensors', b'', 'cannot be read as safetensors'),
        ('b.bin', b'PK\x03\x04 nothing', 'damaged or truncated'),
        ('c/config.json', b'{}', 'holds neither a checkpoint nor a file of weights'),
        (INDEX, b'{"weight_map": {"a": "../a"}}', 'has no weight_map'),
    ],
)
def test_damaged_files(path, content, message, tmp_path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        examine(tmp_path / path.partition('/')[0])


def test_truncated_files(folder, tmp_path):
    whole = (folder / 'model.safetensors').read_bytes()
    (tmp_path / 'a.safetensors').write_bytes(whole[:-5])
    with pytest.raises(RequestError, match=r'cannot be read as safetensors .*truncated'):
        examine(tmp_path / 'a.safetensors')
    with pytest.raises(RequestError, match=r'there is no such .*file or folder'):
        examine(tmp_path / 'nowhere')


def test_what_is_no_beit(folder, tmp_path):
    torch.save({'fc.weight': torch.ones(3, 5)}, tmp_path / 'resnet.pth')
    with pytest.raises(RequestError, match=r"tensors are called 'fc\.weight', \.\.\."):
        examine(tmp_path / 'resnet.pth')
    with pytest.raises(RequestError, match="says that it is a 'vit', not a BEiT"):
        examine(copy(folder, tmp_path / 'vit', model_type='vit'))
    config = torch_models.transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=20,
        patch_size=4,
    )
    vit = torch_models.transformers.ViTModel(config)
    safetensors.torch.save_model(vit, str(tmp_path / 'vit.safetensors'))
    vit.save_pretrained(tmp_path / 'vit_folder')
    for path in ('vit.safetensors', 'vit_folder/model.safetensors'):
        with pytest.raises(RequestError, match=r'is a ViT or DeiT|not a BEiT'):
            examine(tmp_path / path)


def test_nothing_is_written_half(state, tmp_path):
    path = save(changed(state, drop=('lm_head.bias',)), tmp_path / 'bad.pth')
    with pytest.raises(RequestError, match=r'missing: lm_head.bias \[101\]'):
        call(import_weights, input=path, output=tmp_path / 'out')
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['bad.pth']
    path = save(state, tmp_path / 'good.pth')
    call(import_weights, input=path, output=tmp_path / 'out')
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['bad.pth', 'good.pth', 'out']
    with pytest.raises(RequestError, match='is there already'):
        call(import_weights, input=path, output=tmp_path / 'out')
