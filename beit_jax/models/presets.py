"""Sizes of the encoder, and the weights that the authors released.

Sizes: paper, section 2.2 and appendix; tiny and small as in DeiT.
"""

import dataclasses

# fmt: off
PRESETS = {
    'tiny':  {'width': 192,  'depth': 12, 'heads': 3,  'hidden': 768},
    'small': {'width': 384,  'depth': 12, 'heads': 6,  'hidden': 1536},
    'base':  {'width': 768,  'depth': 12, 'heads': 12, 'hidden': 3072},
    'large': {'width': 1024, 'depth': 24, 'heads': 16, 'hidden': 4096},
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Released:
    """A file of the official README.

    All of them have patches of 16 pixels and mean pooling; but for the `vanilla` one LayerScale and
    a relative position bias (shared in pre-training), and but for that one and those of BEiT v2
    pixels with mean and standard deviation 0.5. Accuracies in percent on ImageNet-1k as the
    official READMEs give them; 0 where they give none.
    """

    size: str
    image_size: int
    num_classes: int = 0  # 0: pre-trained, a head for 8192 tokens
    top1: float = 0.0
    top5: float = 0.0
    hub: str = ''  # its name on Hugging Face's hub; '': it is not there
    timm: str = ''  # its name in timm; likewise
    vanilla: bool = False  # absolute positions, no LayerScale, ImageNet's mean and deviation
    v2: bool = False  # ImageNet's mean and deviation; pre-trained, layers that pre-train CLS


# fmt: off
RELEASED = {
    # size, side of a picture, classes, top-1, top-5, hub, timm
    'beit_base_patch16_224_pt1k_800ep': Released('base', 224, vanilla=True),
    'beit_base_patch16_224_pt22k': Released('base', 224,
        hub='microsoft/beit-base-patch16-224-pt22k'),
    'beit_large_patch16_224_pt22k': Released('large', 224,
        hub='microsoft/beit-large-patch16-224-pt22k'),
    'beit_base_patch16_224_pt22k_ft22k': Released('base', 224, 21841,
        hub='microsoft/beit-base-patch16-224-pt22k-ft22k',
        timm='beit_base_patch16_224.in22k_ft_in22k'),
    'beit_large_patch16_224_pt22k_ft22k': Released('large', 224, 21841,
        hub='microsoft/beit-large-patch16-224-pt22k-ft22k',
        timm='beit_large_patch16_224.in22k_ft_in22k'),
    'beit_base_patch16_224_pt22k_ft1k': Released('base', 224, 1000, 83.7, 96.6),
    'beit_base_patch16_224_pt22k_ft22kto1k': Released('base', 224, 1000, 85.2, 97.6,
        'microsoft/beit-base-patch16-224', 'beit_base_patch16_224.in22k_ft_in22k_in1k'),
    'beit_base_patch16_384_pt22k_ft22kto1k': Released('base', 384, 1000, 86.8, 98.1,
        'microsoft/beit-base-patch16-384', 'beit_base_patch16_384.in22k_ft_in22k_in1k'),
    'beit_large_patch16_224_pt22k_ft1k': Released('large', 224, 1000, 86.0, 97.6),
    'beit_large_patch16_224_pt22k_ft22kto1k': Released('large', 224, 1000, 87.4, 98.3,
        'microsoft/beit-large-patch16-224', 'beit_large_patch16_224.in22k_ft_in22k_in1k'),
    'beit_large_patch16_384_pt22k_ft22kto1k': Released('large', 384, 1000, 88.4, 98.6,
        'microsoft/beit-large-patch16-384', 'beit_large_patch16_384.in22k_ft_in22k_in1k'),
    'beit_large_patch16_512_pt22k_ft22kto1k': Released('large', 512, 1000, 88.6, 98.66,
        'microsoft/beit-large-patch16-512', 'beit_large_patch16_512.in22k_ft_in22k_in1k'),
    'beitv2_base_patch16_224_pt1k': Released('base', 224, v2=True),
    'beitv2_base_patch16_224_pt1k_300e': Released('base', 224, v2=True),
    'beitv2_large_patch16_224_pt1k': Released('large', 224, v2=True),
    'beitv2_large_patch16_224_pt1k_300e': Released('large', 224, v2=True),
    'beitv2_base_patch16_224_pt1k_300e_ft1k': Released('base', 224, 1000, 85.0, v2=True),
    'beitv2_large_patch16_224_pt1k_300e_ft1k': Released('large', 224, 1000, 86.6, v2=True),
    'beitv2_base_patch16_224_pt1k_ft1k': Released('base', 224, 1000, 85.5, 97.5, v2=True,
        timm='beitv2_base_patch16_224.in1k_ft_in1k'),
    'beitv2_large_patch16_224_pt1k_ft1k': Released('large', 224, 1000, 87.3, 98.2, v2=True,
        timm='beitv2_large_patch16_224.in1k_ft_in1k'),
    'beitv2_base_patch16_224_pt1k_ft21k': Released('base', 224, 21841, v2=True,
        timm='beitv2_base_patch16_224.in1k_ft_in22k'),
    'beitv2_large_patch16_224_pt1k_ft21k': Released('large', 224, 21841, v2=True,
        timm='beitv2_large_patch16_224.in1k_ft_in22k'),
    'beitv2_base_patch16_224_pt1k_ft21kto1k': Released('base', 224, 1000, 86.5, 98.0, v2=True,
        timm='beitv2_base_patch16_224.in1k_ft_in22k_in1k'),
    'beitv2_large_patch16_224_pt1k_ft21kto1k': Released('large', 224, 1000, 88.4, 98.6, v2=True,
        timm='beitv2_large_patch16_224.in1k_ft_in22k_in1k'),
}
# fmt: on


def find_released(name: str) -> Released | None:
    """The released weights that a file or folder is named after.

    'beit_base_patch16_224_pt22k', the hub's name, or timm's.
    """
    folded = name.lower().replace('-', '_')
    for key, released in RELEASED.items():
        hub = released.hub.partition('/')[2].replace('-', '_')
        if folded and folded in (key, hub, released.timm):
            return released
    return None
