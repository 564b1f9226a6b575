"""BEiT models of PyTorch with random weights: transformers', timm's, and the official code's.

The last is built on timm's, which has its names.
"""

import contextlib
import enum
import importlib.abc
import importlib.machinery
import sys
import types

import torch
from torch import nn
import transformers


class _Stand(types.ModuleType):
    """Stands for a module of torchvision while timm is imported.

    Has the names that timm wants, none of which can be used.
    """

    class InterpolationMode(enum.Enum):
        NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(7)

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return type(name, (), {'__init__': _unusable})


def _unusable(*_, **__):
    raise NotImplementedError('torchvision is not installed')


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Stand(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def _without_torchvision():
    """timm's data pipeline, imported with its models, wants torchvision; the models do not.

    PyPI has none for torch's CPU build.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]  # transformers asks whether it is there


with _without_torchvision():
    import timm
    from timm.models.beit import Beit


class OfficialMaskedImageModel(Beit):
    """modeling_pretrain.py: timm's encoder with the official names of what is pre-trained."""

    def __init__(self, vocabulary: int, **sizes):
        super().__init__(num_classes=0, global_pool='token', **sizes)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.lm_head = nn.Linear(self.embed_dim, vocabulary)

    def forward(self, x, bool_masked_pos):
        """Logits of all patches, [B, P, V]."""
        x = torch.where(bool_masked_pos[..., None], self.mask_token, self.patch_embed(x))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.pos_embed is None else x + self.pos_embed
        bias = self.rel_pos_bias() if self.rel_pos_bias is not None else None
        for block in self.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        return self.lm_head(self.norm(x)[:, 1:])


class OfficialClsModel(OfficialMaskedImageModel):
    """BEiT v2's modeling_pretrain.py, which pre-trains CLS too (after ../shared/facts/beit2.md)."""

    def __init__(self, vocabulary: int, early: int, layers: int, shared: bool, **sizes):
        super().__init__(vocabulary, **sizes)
        self.early, self.shared = early, shared
        more = sizes | {'depth': layers}
        self.cls_pt_layers = Beit(num_classes=0, global_pool='token', **more).blocks
        if not shared:
            self.cls_pt_norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
            self.cls_pt_lm_head = nn.Linear(self.embed_dim, vocabulary)

    def forward(self, x, bool_masked_pos):
        """Logits of all patches by both heads, [B, P, V]."""
        x = torch.where(bool_masked_pos[..., None], self.mask_token, self.patch_embed(x))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        bias = self.rel_pos_bias()
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, shared_rel_pos_bias=bias)
            if number == self.early:
                early = x[:, 1:]
        more = torch.cat([x[:, :1], early], dim=1)
        for block in self.cls_pt_layers:
            more = block(more, shared_rel_pos_bias=bias)
        if self.shared:
            more = self.lm_head(self.norm(more))
        else:
            more = self.cls_pt_lm_head(self.cls_pt_norm(more))
        return self.lm_head(self.norm(x))[:, 1:], more[:, 1:]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """No weight at a symmetric value: none is 0 or 1, or like another."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            deviation = 0.25 if value.ndim != 2 or 'table' in name else value.shape[1] ** -0.5
            mean = 1.0 if 'norm' in name and 'weight' in name else 0.0
            value.normal_(mean, deviation)
    return model.eval()


def keep_indices(model: nn.Module) -> nn.Module:
    """Has the buffers of indices in the state dict, as the official code does and timm does not."""
    for module in model.modules():
        if getattr(module, 'relative_position_bias_table', None) is not None:
            index = module.relative_position_index
            module.register_buffer('relative_position_index', index, persistent=True)
    return model


def make_timm(
    positions: str,
    *,
    width=768,
    depth=12,
    heads=12,
    hidden=3072,
    side=224,
    patch_size=16,
    classes=1000,
    pooling='mean',
    layer_scale=0.1,
    vocabulary=0,
    qkv_bias=True,
) -> Beit:
    """A classifier (classes = 0: without a head), or with a vocabulary the official pre-training
    model."""
    sizes = timm_sizes(positions, width, depth, heads, hidden, side, patch_size, layer_scale)
    sizes['qkv_bias'] = qkv_bias
    if vocabulary:
        return randomize(OfficialMaskedImageModel(vocabulary, **sizes))
    sizes['global_pool'] = {'mean': 'avg', 'cls': 'token'}[pooling]
    return randomize(timm.create_model('beit_base_patch16_224', num_classes=classes, **sizes))


def timm_sizes(positions, width, depth, heads, hidden, side, patch_size, layer_scale) -> dict:
    return {
        'img_size': side,
        'patch_size': patch_size,
        'embed_dim': width,
        'depth': depth,
        'num_heads': heads,
        'mlp_ratio': hidden / width,
        'init_values': layer_scale,
        'use_abs_pos_emb': 'absolute' in positions,
        'use_rel_pos_bias': 'layer_bias' in positions,
        'use_shared_rel_pos_bias': 'shared_bias' in positions,
    }


def make_transformers(
    positions: str,
    *,
    width=768,
    depth=12,
    heads=12,
    hidden=3072,
    side=224,
    patch_size=16,
    classes=1000,
    pooling='mean',
    layer_scale=0.1,
    vocabulary=0,
    eps=1e-12,
):
    """BeitForImageClassification (classes = 0: BeitModel), or with a vocabulary
    BeitForMaskedImageModeling."""
    sizes = transformers_sizes(positions, width, depth, heads, hidden, side, patch_size)
    sizes |= {'layer_scale_init_value': layer_scale, 'layer_norm_eps': eps}
    if vocabulary:
        config = transformers.BeitConfig(**sizes, vocab_size=vocabulary, use_mask_token=True)
        return randomize(transformers.BeitForMaskedImageModeling(config))
    sizes['use_mean_pooling'] = pooling == 'mean'
    if not classes:
        return randomize(transformers.BeitModel(transformers.BeitConfig(**sizes)))
    config = transformers.BeitConfig(**sizes, **class_names(classes))
    return randomize(transformers.BeitForImageClassification(config))


def transformers_sizes(positions, width, depth, heads, hidden, side, patch_size) -> dict:
    return {
        'hidden_size': width,
        'num_hidden_layers': depth,
        'num_attention_heads': heads,
        'intermediate_size': hidden,
        'image_size': side,
        'patch_size': patch_size,
        'use_absolute_position_embeddings': 'absolute' in positions,
        'use_relative_position_bias': 'layer_bias' in positions,
        'use_shared_relative_position_bias': 'shared_bias' in positions,
    }


def class_names(classes: int) -> dict:
    labels = {i: f'kind {i}' for i in range(classes)}
    return {'id2label': labels, 'label2id': {name: i for i, name in labels.items()}}
