"""Vision transformers that are no BEiT, as teachers: timm's, DeiT's and DINO's, and the vision part
of CLIP, OpenAI's or transformers'.

Their names are turned into those of the official BEiT code first, of which `names` has the table.
"""

import dataclasses
import re

import numpy as np

from beit_jax.errors import check
from beit_jax.models.encoder import EncoderConfig
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.architecture import HEAD_WIDTH, read_sizes
from beit_jax.weights.pytorch.dialects import PREFIXES
from beit_jax.weights.pytorch.entries import each_channel, group, whole
from beit_jax.weights.pytorch.files import Source
from beit_jax.weights.pytorch.pictures import IMAGENET

CLIP_PIXELS = {
    'mean': (0.48145466, 0.4578275, 0.40821073),
    'std': (0.26862954, 0.26130258, 0.27577711),
}
# fmt: off
_OPENAI = (
    (r'class_embedding', 'cls_token'), (r'positional_embedding', 'pos_embed'), (r'proj', 'proj'),
    (r'conv1\.weight', 'patch_embed.proj.weight'), (r'ln_pre\.(\w+)', r'pre_norm.\1'),
    (r'ln_post\.(\w+)', r'norm.\1'),
    (r'transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)', r'blocks.\1.norm\2.\3'),
    (r'transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)', r'blocks.\1.attn.qkv.\2'),
    (r'transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)', r'blocks.\1.attn.proj.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)', r'blocks.\1.mlp.fc1.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)', r'blocks.\1.mlp.fc2.\2'),
)
_TRANSFORMERS = (
    (r'embeddings\.class_embedding', 'cls_token'),
    (r'embeddings\.position_embedding\.weight', 'pos_embed'),
    (r'embeddings\.patch_embedding\.weight', 'patch_embed.proj.weight'),
    (r'pre_layrnorm\.(\w+)', r'pre_norm.\1'), (r'post_layernorm\.(\w+)', r'norm.\1'),
    (r'encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)', r'blocks.\1.norm\2.\3'),
    (r'encoder\.layers\.(\d+)\.self_attn\.q_proj\.weight', r'blocks.\1.attn.qkv.weight.query'),
    (r'encoder\.layers\.(\d+)\.self_attn\.k_proj\.weight', r'blocks.\1.attn.qkv.weight.key'),
    (r'encoder\.layers\.(\d+)\.self_attn\.v_proj\.weight', r'blocks.\1.attn.qkv.weight.value'),
    (r'encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.bias', r'blocks.\1.attn.\2_bias'),
    (r'encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)', r'blocks.\1.attn.proj.\2'),
    (r'encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)', r'blocks.\1.mlp.\2.\3'),
)
# fmt: on
_VISION = 'vision_model.'  # of transformers


@dataclasses.dataclass(frozen=True)
class Vit:
    """What a file holds."""

    kind: str  # 'ViT' or 'CLIP'
    config: EncoderConfig
    grid: tuple[int, int]
    clip_features: int  # see `models.teacher.Teacher`
    flat: dict[str, np.ndarray]  # float32, by the paths of a `Teacher`
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_vit(source: Source) -> Vit | None:
    """The vision transformer of a file or folder; None where it holds none that is known here.

    Raises:
      RequestError: tensors that do not tell what it is.
    """
    tensors = dict(source.tensors)
    for prefix in (*PREFIXES, 'backbone.'):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    clip = _clip(tensors)
    if not clip and not any(name.endswith('attn.qkv.bias') for name in tensors):
        return None
    tensors = clip or {
        name: array for name, array in tensors.items() if not name.startswith(('head.', 'fc.'))
    }
    for name in [name for name in tensors if name.endswith('attn.qkv.bias')]:
        query, _, value = np.split(tensors.pop(name), 3)
        place = name.removesuffix('qkv.bias')
        tensors |= {f'{place}q_bias': query, f'{place}v_bias': value}
    tensors = {n: array for n, array in tensors.items() if not n.endswith('attn.k_bias')}
    head = 'mean' if 'fc_norm.weight' in tensors else 'cls'
    by_path = {}
    for name, array in names.split_qkv(tensors).items():
        special = {'pre_norm.weight': 'encoder/pre_norm/scale', 'proj': 'projection/kernel'}
        special['pre_norm.bias'] = 'encoder/pre_norm/bias'
        path = special.get(name) or names.to_path(name, 'unilm', head)
        check(
            bool(path),
            f'{source.path}: {name[:80]!a} is no part of a plain ViT or CLIP, which can be taught '
            'from: give another teacher.',
        )
        by_path[path] = array
    sizes = read_sizes(by_path)
    flat = {
        path.removeprefix('head/'): np.ascontiguousarray(
            array if path == 'projection/kernel' else names.from_torch(path, array), np.float32
        )
        for path, array in by_path.items()
    }
    said = group(source.config, 'vision_config') or source.config
    heads = whole(said, 'num_attention_heads') or sizes['width'] // HEAD_WIDTH
    config = EncoderConfig(
        width=sizes['width'],
        depth=sizes['depth'],
        heads=max(1, heads),
        hidden=sizes['hidden'],
        patch_size=sizes['patch_size'],
        channels=sizes['colours'],
        positions='absolute',
        layer_scale=0.0,
        drop_path=0.0,
        norm_eps=1e-5 if clip else 1e-6,
    )
    pixels = group(source.config, 'pretrained_cfg') or source.processor
    usual = CLIP_PIXELS if clip else IMAGENET
    mean = each_channel(pixels, 'mean') or each_channel(pixels, 'image_mean') or usual['mean']
    std = each_channel(pixels, 'std', 1e-6) or each_channel(pixels, 'image_std', 1e-6)
    return Vit(
        'CLIP' if clip else 'ViT',
        config,
        tuple(sizes['grid']),
        by_path['projection/kernel'].shape[1] if clip else 0,
        flat,
        mean,
        std or usual['std'],
    )


def _clip(tensors) -> dict[str, np.ndarray]:
    """CLIP's vision part by the names of the official BEiT code; {} where it is none."""
    if 'visual.class_embedding' in tensors:
        prefix, table = 'visual.', _OPENAI
    elif f'{_VISION}embeddings.class_embedding' in tensors:
        prefix, table = _VISION, _TRANSFORMERS
    else:
        return {}
    found = {}
    for name, array in tensors.items():
        inside = name.removeprefix(prefix)
        if not name.startswith(prefix) or inside.endswith('position_ids'):
            continue  # of texts
        for pattern, theirs in table:
            if match := re.fullmatch(pattern, inside):
                inside = match.expand(theirs)
                break
        found[inside] = array
    if 'visual_projection.weight' in tensors:
        found['proj'] = tensors['visual_projection.weight'].T
    for name in ('cls_token', 'pos_embed'):
        if name in found:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    if 'patch_embed.proj.weight' in found:
        found['patch_embed.proj.bias'] = np.zeros(len(found['patch_embed.proj.weight']), np.float32)
    check(
        'proj' in found,
        'this CLIP has no projection (proj, visual_projection): give the whole model.',
    )
    return found
