"""BEiT models of PyTorch with random weights: transformers', timm's, and the official code's (built on timm's, which has its names)."""
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
    """Stands for a module of torchvision while timm is imported: has the names that timm wants, none of which can be used."""

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
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split('.')[0] == 'torchvision' else None

    def create_module(self, spec):
        return _Stand(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def _without_torchvision():
    """PyPI has no torchvision for torch's CPU build. timm's models do not use it, but its data pipeline, imported with them, does."""
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


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """No weight at a symmetric value: none is 0 or 1, or like another."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            deviation = 0.25 if value.ndim != 2 or 'table' in name else value.shape[1] ** -0.5
            value.normal_(1.0 if 'norm' in name and 'weight' in name else 0.0, deviation)
    return model.eval()


def keep_indices(model: nn.Module) -> nn.Module:
    """Has the buffers of indices in the state dict, as the official code does and timm does not."""
    for module in model.modules():
        if getattr(module, 'relative_position_bias_table', None) is not None:
            module.register_buffer('relative_position_index', module.relative_position_index, persistent=True)
    return model


def make_timm(positions: str, *, width=768, depth=12, heads=12, hidden=3072, side=224, patch_size=16, classes=1000, pooling='mean',
              layer_scale=0.1, vocabulary=0) -> Beit:
    """A classifier (classes = 0: without a head), or with a vocabulary the official pre-training model."""
    sizes = {'img_size': side, 'patch_size': patch_size, 'embed_dim': width, 'depth': depth, 'num_heads': heads, 'mlp_ratio': hidden / width,
             'init_values': layer_scale, 'use_abs_pos_emb': positions == 'absolute', 'use_rel_pos_bias': positions == 'layer_bias',
             'use_shared_rel_pos_bias': positions == 'shared_bias'}
    if vocabulary:
        return randomize(OfficialMaskedImageModel(vocabulary, **sizes))
    return randomize(timm.create_model('beit_base_patch16_224', num_classes=classes, global_pool={'mean': 'avg', 'cls': 'token'}[pooling],
                                       **sizes))


def make_transformers(positions: str, *, width=768, depth=12, heads=12, hidden=3072, side=224, patch_size=16, classes=1000, pooling='mean',
                      layer_scale=0.1, vocabulary=0, eps=1e-12):
    """BeitForImageClassification (classes = 0: BeitModel), or with a vocabulary BeitForMaskedImageModeling."""
    labels = {i: f'kind {i}' for i in range(classes)}
    config = transformers.BeitConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=hidden, image_size=side, patch_size=patch_size,
        use_mask_token=bool(vocabulary), use_absolute_position_embeddings=positions == 'absolute',
        use_relative_position_bias=positions == 'layer_bias', use_shared_relative_position_bias=positions == 'shared_bias',
        use_mean_pooling=bool(vocabulary) or pooling == 'mean', layer_scale_init_value=layer_scale, layer_norm_eps=eps,
        **({'vocab_size': vocabulary} if vocabulary else {}),
        **({'id2label': labels, 'label2id': {name: i for i, name in labels.items()}} if labels and not vocabulary else {}))
    if vocabulary:
        return randomize(transformers.BeitForMaskedImageModeling(config))
    return randomize(transformers.BeitForImageClassification(config) if classes else transformers.BeitModel(config))
