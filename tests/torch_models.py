"""BEiT models of PyTorch with random weights: transformers', timm's, and the official code's (built
on timm's, which has its names)."""

import contextlib
import enum
import importlib.abc
import importlib.machinery
import sys
import types

import torch
from torch import nn
from torch.nn import functional
import transformers


class _Stand(types.ModuleType):
    """Stands for a module of torchvision while timm is imported: has the names that timm wants,
    none of which can be used."""

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
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.split('.')[0] == 'torchvision'
            else None
        )

    def create_module(self, spec):
        return _Stand(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def _without_torchvision():
    """PyPI has no torchvision for torch's CPU build. timm's models do not use it, but its data
    pipeline, imported with them, does."""
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
            module.register_buffer(
                'relative_position_index', module.relative_position_index, persistent=True
            )
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
) -> Beit:
    """A classifier (classes = 0: without a head), or with a vocabulary the official pre-training
    model."""
    sizes = {
        'img_size': side,
        'patch_size': patch_size,
        'embed_dim': width,
        'depth': depth,
        'num_heads': heads,
        'mlp_ratio': hidden / width,
        'init_values': layer_scale,
        'use_abs_pos_emb': positions == 'absolute',
        'use_rel_pos_bias': positions == 'layer_bias',
        'use_shared_rel_pos_bias': positions == 'shared_bias',
    }
    if vocabulary:
        return randomize(OfficialMaskedImageModel(vocabulary, **sizes))
    return randomize(
        timm.create_model(
            'beit_base_patch16_224',
            num_classes=classes,
            global_pool={'mean': 'avg', 'cls': 'token'}[pooling],
            **sizes,
        )
    )


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
    labels = {i: f'kind {i}' for i in range(classes)}
    config = transformers.BeitConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        image_size=side,
        patch_size=patch_size,
        use_mask_token=bool(vocabulary),
        use_absolute_position_embeddings=positions == 'absolute',
        use_relative_position_bias=positions == 'layer_bias',
        use_shared_relative_position_bias=positions == 'shared_bias',
        use_mean_pooling=bool(vocabulary) or pooling == 'mean',
        layer_scale_init_value=layer_scale,
        layer_norm_eps=eps,
        **({'vocab_size': vocabulary} if vocabulary else {}),
        **(
            {'id2label': labels, 'label2id': {name: i for i, name in labels.items()}}
            if labels and not vocabulary
            else {}
        ),
    )
    if vocabulary:
        return randomize(transformers.BeitForMaskedImageModeling(config))
    return randomize(
        transformers.BeitForImageClassification(config)
        if classes
        else transformers.BeitModel(config)
    )


class ConvModule(nn.Module):
    """mmcv's: convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.conv, self.bn = (
            nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class OfficialBackbone(Beit):
    """semantic_segmentation/backbone/beit.py: four levels of a pyramid."""

    def __init__(self, taps, **sizes):
        super().__init__(num_classes=0, global_pool='token', **sizes)
        width, self.norm, self.taps = self.embed_dim, nn.Identity(), taps
        first, second, third = (nn.ConvTranspose2d(width, width, 2, 2) for _ in range(3))
        self.fpn1, self.fpn2 = (
            nn.Sequential(first, nn.BatchNorm2d(width), nn.GELU(), second),
            nn.Sequential(third),
        )

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.pos_embed is None else x + self.pos_embed
        bias, levels = self.rel_pos_bias() if self.rel_pos_bias is not None else None, []
        for i, block in enumerate(self.blocks):
            x = block(x, shared_rel_pos_bias=bias)
            levels += [
                x[:, 1:].transpose(1, 2).unflatten(2, self.patch_embed.grid_size)
            ] * self.taps.count(i)
        return [
            self.fpn1(levels[0]),
            self.fpn2(levels[1]),
            levels[2],
            functional.max_pool2d(levels[3], 2),
        ]


def _enlarge(x, like):
    return functional.interpolate(x, size=like.shape[2:], mode='bilinear', align_corners=False)


class UPerHead(nn.Module):
    """mmsegmentation's."""

    def __init__(self, width: int, channels: int, classes: int, scales):
        super().__init__()
        self.psp_modules = nn.ModuleList(
            [
                nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(width, channels, 1))
                for scale in scales
            ]
        )
        self.bottleneck = ConvModule(width + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList([ConvModule(width, channels, 1) for _ in range(3)])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in range(3)])
        self.fpn_bottleneck, self.conv_seg = (
            ConvModule(4 * channels, channels, 3),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, levels):
        last = levels[3]
        levels = [conv(level) for conv, level in zip(self.lateral_convs, levels)] + [
            self.bottleneck(
                torch.cat(
                    [last, *(_enlarge(pooled(last), last) for pooled in self.psp_modules)], dim=1
                )
            )
        ]
        for i in (2, 1, 0):
            levels[i] = levels[i] + _enlarge(levels[i + 1], levels[i])
        outputs = [conv(level) for conv, level in zip(self.fpn_convs, levels)] + levels[3:]
        return self.conv_seg(
            self.fpn_bottleneck(
                torch.cat([_enlarge(output, outputs[0]) for output in outputs], dim=1)
            )
        )


class FCNHead(nn.Module):
    def __init__(self, width: int, channels: int, classes: int):
        super().__init__()
        self.convs, self.conv_seg = (
            nn.ModuleList([ConvModule(width, channels, 3)]),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, levels):
        return self.conv_seg(self.convs[0](levels[2]))


class OfficialSegmenter(nn.Module):
    """mmsegmentation's EncoderDecoder as the official configs make it, with its names."""

    def __init__(
        self,
        positions: str,
        *,
        width,
        depth,
        heads,
        hidden,
        side,
        patch_size=16,
        classes,
        taps,
        channels=0,
        auxiliary=5,
        layer_scale=0.1,
        scales=(1, 2, 3, 6),
    ):
        super().__init__()
        self.backbone = OfficialBackbone(
            taps,
            img_size=side,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=hidden / width,
            init_values=layer_scale,
            use_abs_pos_emb=positions == 'absolute',
            use_rel_pos_bias=positions == 'layer_bias',
            use_shared_rel_pos_bias=positions == 'shared_bias',
        )
        self.decode_head = UPerHead(width, channels or width, classes, scales)
        self.auxiliary_head = FCNHead(width, auxiliary, classes)

    def forward(self, x):
        """(logits [B, C, 4 h, 4 w], auxiliary ones [B, C, h, w])."""
        levels = self.backbone(x)
        return self.decode_head(levels), self.auxiliary_head(levels)


def randomize_segmenter(model: nn.Module, seed: int = 0) -> nn.Module:
    """`randomize`, and every convolution and batch norm, running statistics and counters too."""
    randomize(model, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                inputs = (
                    len(module.weight)
                    if isinstance(module, nn.ConvTranspose2d)
                    else module.weight[0].numel()
                )
                module.weight.normal_(0, inputs**-0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1, 0.25)
                module.running_mean.normal_(0, 0.25)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(7919)
    return model.eval()


def make_official_segmenter(positions: str, **sizes) -> OfficialSegmenter:
    return randomize_segmenter(OfficialSegmenter(positions, **sizes))


def make_transformers_segmenter(
    positions: str,
    *,
    width,
    depth,
    heads,
    hidden,
    side,
    patch_size=16,
    classes,
    taps,
    auxiliary=5,
    layer_scale=0.1,
    scales=(1, 2, 3, 6),
    eps=1e-12,
):
    """BeitForSemanticSegmentation; `taps`: blocks from 0, up to the last but one. Its `out_indices`
    count from 1, one too many."""
    labels = {i: f'kind {i}' for i in range(classes)}
    return randomize_segmenter(
        transformers.BeitForSemanticSegmentation(
            transformers.BeitConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=hidden,
                image_size=side,
                patch_size=patch_size,
                use_absolute_position_embeddings=positions == 'absolute',
                use_relative_position_bias=positions == 'layer_bias',
                use_shared_relative_position_bias=positions == 'shared_bias',
                layer_scale_init_value=layer_scale,
                layer_norm_eps=eps,
                out_indices=[tap + 2 for tap in taps],
                pool_scales=list(scales),
                use_auxiliary_head=bool(auxiliary),
                auxiliary_channels=auxiliary or 256,
                id2label=labels,
                label2id={name: i for i, name in labels.items()},
            )
        )
    )
