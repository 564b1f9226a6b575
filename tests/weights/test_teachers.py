"""Teachers of VQ-KD against the libraries that they are of, random weights, 1e-4 in float32."""

import jax
import numpy as np
import pytest
import torch
import transformers

from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.vits import CLIP_PIXELS
from beit_jax.weights.teachers import load_teacher
from tests.torch_models import make_timm, randomize, timm

SIDE, PATCH, WIDTH, HIDDEN = 21, 7, 128, 37


def pictures(side=SIDE):
    return np.random.default_rng(0).random((3, side, side, 3), np.float32)


def compare(teacher, by_torch, side=SIDE):
    """by_torch: normalised pixels [B, 3, S, S] -> [B, P, F]."""
    images, mean, std = pictures(side), np.array(teacher.mean), np.array(teacher.std)
    pixels = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        expected = by_torch(pixels).numpy()
    found = np.asarray(jax.jit(teacher.look)(teacher.params, images))
    assert found.shape == (3, (side // PATCH) ** 2, teacher.features) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def make_vit(**options):
    sizes = {'img_size': SIDE, 'patch_size': PATCH, 'embed_dim': WIDTH, 'depth': 2, 'num_heads': 2}
    model = timm.create_model('vit_base_patch16_224', mlp_ratio=HIDDEN / WIDTH, **sizes, **options)
    return randomize(model)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_dino(prefix, tmp_path):
    """A plain ViT whose keys have biases; its classes, where it has any, are left out."""
    model = make_vit(num_classes=0 if prefix else 5)
    assert model.blocks[0].attn.qkv.bias.abs().min() > 0
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / 'dino_vitbase16_pretrain.pth')
    teacher = load_teacher(str(tmp_path / 'dino_vitbase16_pretrain.pth'))
    assert (teacher.kind, teacher.image_size, teacher.features) == ('ViT', SIDE, WIDTH)
    assert teacher.mean == (0.485, 0.456, 0.406)
    compare(teacher, lambda x: model.forward_features(x)[:, 1:])


def make_clip():
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        projection_dim=11,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    assert config.hidden_act == 'quick_gelu'
    return randomize(transformers.CLIPVisionModelWithProjection(config))


def clip_features(model):
    """Patches after the last norm, times the projection."""

    def features(x):
        hidden = model.vision_model(x).last_hidden_state
        return model.visual_projection(model.vision_model.post_layernorm(hidden))[:, 1:]

    return features


def test_clip_of_transformers(tmp_path):
    model = make_clip()
    model.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert (teacher.kind, teacher.image_size, teacher.features) == ('CLIP', SIDE, 11)
    assert (teacher.mean, teacher.std) == tuple(CLIP_PIXELS.values())
    compare(teacher, clip_features(model))


OPENAI = {
    'embeddings.class_embedding': 'class_embedding',
    'embeddings.position_embedding.weight': 'positional_embedding',
    'embeddings.patch_embedding': 'conv1',
    'pre_layrnorm': 'ln_pre',
    'post_layernorm': 'ln_post',
    'encoder.layers': 'transformer.resblocks',
    'self_attn.out_proj': 'attn.out_proj',
    'self_attn.q_proj.': 'attn.in_proj_',
    'layer_norm': 'ln_',
    'fc1': 'c_fc',
    'fc2': 'c_proj',
}


def as_openai(state) -> dict:
    """Transformers' names and layouts as OpenAI's, a piece of the texts' part among them."""
    named = {'transformer.resblocks.0.ln_1.weight': torch.ones(3)}
    named['visual.proj'] = state['visual_projection.weight'].T.contiguous()
    for name, tensor in state.items():
        parts = [state[name.replace('q_proj', f'{part}_proj')] for part in 'qkv']
        new = name.removeprefix('vision_model.')
        for theirs, openai in OPENAI.items():
            new = new.replace(theirs, openai)
        if not any(left in new for left in ('k_proj', 'v_proj', 'position_ids', 'projection')):
            named[f'visual.{new}'] = torch.cat(parts) if 'q_proj' in name else tensor
    return named


def test_clip_of_openai(tmp_path):
    model = make_clip()
    torch.save(as_openai(model.state_dict()), tmp_path / 'ViT-B-16.pt')
    teacher = load_teacher(str(tmp_path / 'ViT-B-16.pt'))
    assert (teacher.kind, teacher.features) == ('CLIP', 11)
    compare(teacher, clip_features(model))


def test_released_beit(tmp_path):
    """A file of pre-training, and one that is shown larger pictures than it was made for."""
    model = make_timm(
        'shared_bias', width=WIDTH, depth=2, heads=2, hidden=HIDDEN, side=SIDE, patch_size=PATCH,
        vocabulary=13,
    )  # fmt: skip
    torch.save(model.state_dict(), tmp_path / 'beit.pth')

    def features(x):
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), model.patch_embed(x)], 1)
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=model.rel_pos_bias())
        return model.norm(x)[:, 1:]

    teacher = load_teacher(str(tmp_path / 'beit.pth'), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert (teacher.kind, teacher.mean, teacher.features) == ('BEiT', (0.1, 0.2, 0.3), WIDTH)
    compare(teacher, features)
    larger = load_teacher(str(tmp_path / 'beit.pth'), 35)
    assert larger.grid == (5, 5) and 'interpolated to 5 x 5' in larger.notes[-1]
    assert jax.jit(larger.look)(larger.params, pictures(35)).shape == (3, 25, WIDTH)
    assert larger.fingerprint() != teacher.fingerprint()


def test_teachers_that_are_refused(tmp_path):
    def refused(message, state):
        torch.save(state, tmp_path / 'teacher.pth')
        with pytest.raises(RequestError, match=message):
            load_teacher(str(tmp_path / 'teacher.pth'))

    vit, clip = make_vit(num_classes=0).state_dict(), as_openai(make_clip().state_dict())
    refused(
        "'blocks.0.ls1.gamma' is no part of a plain ViT",
        vit | {'blocks.0.ls1.gamma': vit['norm.bias']},
    )
    refused(
        'NaN or infinite: norm/scale has 128', vit | {'norm.weight': torch.full((WIDTH,), np.nan)}
    )
    refused('is of another model', vit | {'blocks.0.norm1.weight': torch.ones(3)})
    script = torch.jit.script(torch.nn.Linear(3, 5))  # as OpenAI gives CLIP
    script.save(tmp_path / 'ViT-B-16.pt')
    with pytest.raises(RequestError, match=r'program of TorchScript.*torch\.jit\.load'):
        load_teacher(str(tmp_path / 'ViT-B-16.pt'))
    refused('no projection', {n: t for n, t in clip.items() if n != 'visual.proj'})
