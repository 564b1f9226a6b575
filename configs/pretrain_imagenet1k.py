"""BEiT pre-training on ImageNet-1k, 800 epochs (paper, section 3.1 and Table 9; official
beit/README.md).

    python main.py --config=configs/pretrain_imagenet1k.py:base,vanilla --workdir=DIR \\
        --config.data.path=/imagenet/train --config.data.evaluate_path=/imagenet/val \\
        --config.tokenizer.path=TOKENIZER

Variants: `base` (default) or `large`; `plus` (default: LayerScale and a shared relative position
bias, what the official code does) or `vanilla` (absolute positions, what the paper's tables 1 to 4
report). With TFDS records: data.name=tfds,data.path=/tfds/imagenet2012/5.1.0.

Ablations of the paper's Table 4, which may be combined (pixels,random): `random` (masks that are
not blockwise), `pixels` (normalised, in place of tokens; takes no tokenizer), `all` (every patch is
predicted, hidden or not), `unmasked` (and none is hidden). There, after 300 epochs and fine-tuning
(base vanilla): 82.86 % top-1; random 82.77, pixels (not normalised) 81.04, both 80.50, all 82.59,
unmasked 81.67.

BEiT v2 (arXiv 2208.06366; TOKENIZER: a VQ-KD, see configs/tokenizer_vqkd_imagenet1k.py): `v2`, 1600
epochs, `v2_300`, 300 epochs, `v2_large`, `v2_large_300`. CLS is trained too (config.cls_head) and
exactly 75 patches are hidden. Published after fine-tuning: base 85.5 % (85.0 after 300 epochs),
large 87.3 % (86.6); linear probe of base 80.1 %. Not measured here.

Expected after fine-tuning on ImageNet-1k, from the paper (not measured here): base vanilla 83.2 %
top-1, large vanilla 85.2 %. A healthy run: the official log of base after 300 epochs has loss 6.30,
token_accuracy 0.0496, grad_norm 0.42.
"""

from beit_jax.settings.recipes import recipe, vary

_V2 = {
    'epochs': 1600.0,
    'data': {'crop_scale': (0.2, 1.0)},
    'mask': {'exact': True},
    'cls_head': {'layers': 2, 'early': 9, 'shared': True},
}
_V2_LARGE = {
    'model': {'size': 'large', 'layer_scale': 1e-5},
    'cls_head': {'layers': 2, 'early': 21, 'shared': True},
}
_V2_300 = _V2 | {'epochs': 300.0}
_SHORT = {'model': {'drop_path': 0.0}, 'optimizer': {'beta2': 0.98}}  # of 300 epochs

VARIANTS = {
    'base': {'model': {'size': 'base', 'layer_scale': 0.1}, 'optimizer': {'clip_norm': 3.0}},
    'large': {'model': {'size': 'large', 'layer_scale': 1e-5}, 'optimizer': {'clip_norm': 1.0}},
    'plus': {'model': {'positions': 'shared_bias'}},
    'vanilla': {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
    'random': {'mask': {'kind': 'random'}},
    'pixels': {'target': 'pixels'},
    'all': {'predict': 'all'},
    'unmasked': {'predict': 'all', 'mask': {'kind': 'none'}},
    'v2': _V2,
    'v2_300': _V2_300 | _SHORT,
    'v2_large': _V2 | _V2_LARGE,
    'v2_large_300': _V2_300 | _SHORT | _V2_LARGE | {'model': _SHORT['model'] | _V2_LARGE['model']},
}


def get_config(arg: str = ''):
    config = recipe(
        'pretrain',
        batch_size=2048,
        epochs=800.0,
        log_every=100,
        evaluate_every=6250,  # about ten epochs
        save_every=2500,
        compute_dtype='bfloat16',
        data={
            'name': 'folder',
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.4, 0.4, 0.4),
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'shared_bias',
            'layer_scale': 0.1,
            'drop_path': 0.1,
            # no scan over the blocks: slower to compile, a faster step (docs/benchmarks.md)
            'unroll': 24,
        },
        mask={'kind': 'blockwise', 'patches': 75, 'min_block': 16, 'min_aspect': 0.3},
        tokenizer={'path': ''},  # DALL-E's: 8192 tokens, 112 x 112 pixels to 14 x 14 tokens
        optimizer={
            'lr': 1.5e-3,
            'final_lr': 1e-5,
            'warmup_epochs': 10.0,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 3.0,
        },
    )
    return vary(config, arg, VARIANTS)
