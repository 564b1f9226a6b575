"""Segmenters of PyTorch with random weights: transformers', and the official one.

The official one is mmsegmentation's EncoderDecoder, built here of what its config asks for.
"""

import torch
from torch import nn
from torch.nn import functional
import transformers

from tests.torch_models import Beit, class_names, randomize, timm_sizes, transformers_sizes


class ConvModule(nn.Module):
    """mmcv's: convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class OfficialBackbone(Beit):
    """semantic_segmentation/backbone/beit.py: four levels of a pyramid."""

    def __init__(self, taps, **sizes):
        super().__init__(num_classes=0, global_pool='token', **sizes)
        width, self.norm, self.taps = self.embed_dim, nn.Identity(), taps
        first, second, third = (nn.ConvTranspose2d(width, width, 2, 2) for _ in range(3))
        self.fpn1 = nn.Sequential(first, nn.BatchNorm2d(width), nn.GELU(), second)
        self.fpn2 = nn.Sequential(third)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.pos_embed is None else x + self.pos_embed
        bias, levels = self.rel_pos_bias() if self.rel_pos_bias is not None else None, []
        for i, block in enumerate(self.blocks):
            x = block(x, shared_rel_pos_bias=bias)
            level = x[:, 1:].transpose(1, 2).unflatten(2, self.patch_embed.grid_size)
            levels += [level] * self.taps.count(i)
        first, second, third, last = levels
        return [self.fpn1(first), self.fpn2(second), third, functional.max_pool2d(last, 2)]


def _enlarge(x, like):
    return functional.interpolate(x, size=like.shape[2:], mode='bilinear', align_corners=False)


class UPerHead(nn.Module):
    """mmsegmentation's."""

    def __init__(self, width: int, channels: int, classes: int, scales):
        super().__init__()
        pooled = lambda scale: (nn.AdaptiveAvgPool2d(scale), ConvModule(width, channels, 1))
        self.psp_modules = nn.ModuleList([nn.Sequential(*pooled(scale)) for scale in scales])
        self.bottleneck = ConvModule(width + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList([ConvModule(width, channels, 1) for _ in range(3)])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in range(3)])
        self.fpn_bottleneck = ConvModule(4 * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels):
        last = levels[3]
        pooled = [_enlarge(pooling(last), last) for pooling in self.psp_modules]
        levels = [conv(level) for conv, level in zip(self.lateral_convs, levels)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for i in (2, 1, 0):
            levels[i] = levels[i] + _enlarge(levels[i + 1], levels[i])
        outputs = [conv(level) for conv, level in zip(self.fpn_convs, levels)] + levels[3:]
        enlarged = [_enlarge(output, outputs[0]) for output in outputs]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(enlarged, dim=1)))


class FCNHead(nn.Module):
    """mmsegmentation's, for the auxiliary loss."""

    def __init__(self, width: int, channels: int, classes: int):
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(width, channels, 3)])
        self.conv_seg = nn.Conv2d(channels, classes, 1)

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
        sizes = timm_sizes(positions, width, depth, heads, hidden, side, patch_size, layer_scale)
        self.backbone = OfficialBackbone(taps, **sizes)
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
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            if isinstance(module, nn.ConvTranspose2d):
                module.weight.normal_(0, len(module.weight) ** -0.5)
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
    """BeitForSemanticSegmentation.

    `taps`: blocks from 0, up to the last but one. Its `out_indices` count from 1, one too many.
    """
    config = transformers.BeitConfig(
        **transformers_sizes(positions, width, depth, heads, hidden, side, patch_size),
        **class_names(classes),
        layer_scale_init_value=layer_scale,
        layer_norm_eps=eps,
        out_indices=[tap + 2 for tap in taps],
        pool_scales=list(scales),
        use_auxiliary_head=bool(auxiliary),
        auxiliary_channels=auxiliary or 256,
    )
    return randomize_segmenter(transformers.BeitForSemanticSegmentation(config))
