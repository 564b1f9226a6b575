"""Fine-tuning on ImageNet-1k (paper, section 3.1;
official get_started_for_image_classification.md).

    python main.py --config=configs/finetune_imagenet1k.py:base --workdir=DIR \\
        --config.init=PRETRAINED --config.data.path=/imagenet/train \\
        --config.data.evaluate_path=/imagenet/val

Variants: `base` (default) and `large` start from pre-training, `base_intermediate` and
`large_intermediate` from configs/finetune_imagenet22k.py, whose head they replace. After the size:
`384` and `512` change the resolution (positions are interpolated); `in1k` is for encoders
pre-trained with ImageNet-1k's mean and deviation instead of 0.5 (configs/pretrain_imagenet1k.py);
`vanilla` is that and the architecture of the paper's tables 1 to 4 (absolute positions). BEiT v2
has `v2` (pre-trained for 1600 epochs), `v2_300`, `v2_intermediate` (after fine-tuning on 21k
classes), and `v2_large`, `v2_large_300`, `v2_large_intermediate`. PRETRAINED is a checkpoint, a
work directory or a file of weights.
Memory: --config.accumulate_steps=4.

Expected top-1 on ImageNet-1k (not measured here):
- pre-trained on 1k, vanilla (paper, Table 1): base 83.2 %, large 85.2 %; at 384, ten more epochs
  from the result at 224: 84.6 and 86.3 %
- pre-trained on 22k (official README): base 83.7 %, large 86.0 %
- and fine-tuned on 22k (official README): base 85.2 %, 86.8 % at 384; large 87.4 %, 88.4 % at 384,
  88.6 % at 512
- BEiT v2 (arXiv 2208.06366): base 85.5 % (300 epochs 85.0, after 21k 86.5); large 87.3 % (86.6,
  88.4)
"""

from beit_jax.settings.recipes import recipe, vary

_IN1K = {'data': {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}}
_INTERMEDIATE = {
    'batch_size': 512,
    'epochs': 30.0,
    'new_head': True,
    'mix': {'mixup': 0.0, 'cutmix': 0.0},
}

_LARGE = {'size': 'large', 'layer_scale': 1e-5}


def _v2(lr, epochs, warmup, decay, drop_path, **model):
    """A row of BEiT v2's table; batch 1024."""
    return _IN1K | {
        'epochs': epochs,
        'model': {'drop_path': drop_path} | model,
        'optimizer': {'lr': lr, 'warmup_epochs': warmup, 'layer_decay': decay},
    }


_V2_INTERMEDIATE = {name: _INTERMEDIATE[name] for name in ('new_head', 'mix')}

VARIANTS = {
    'base': {},
    'large': {
        'epochs': 50.0,
        'model': {'size': 'large', 'layer_scale': 1e-5, 'drop_path': 0.2},
        'optimizer': {'lr': 1e-3, 'warmup_epochs': 5.0, 'layer_decay': 0.75},
    },
    'base_intermediate': _INTERMEDIATE
    | {'optimizer': {'lr': 2e-5, 'warmup_epochs': 5.0, 'weight_decay': 1e-8, 'layer_decay': 0.85}},
    'large_intermediate': _INTERMEDIATE
    | {
        'model': {'size': 'large', 'layer_scale': 1e-5, 'drop_path': 0.4},
        'optimizer': {'lr': 2e-5, 'warmup_epochs': 5.0, 'weight_decay': 1e-8, 'layer_decay': 0.9},
    },
    '384': {'data': {'image_size': 384, 'evaluate_crop': 1.0}},
    '512': {'data': {'image_size': 512, 'evaluate_crop': 1.0}},
    'in1k': _IN1K,
    'vanilla': _IN1K | {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
    'v2': _v2(5e-4, 100.0, 20.0, 0.6, 0.2),
    'v2_300': _v2(5e-4, 100.0, 20.0, 0.65, 0.1),
    'v2_intermediate': _v2(5e-5, 30.0, 20.0, 0.75, 0.1) | _V2_INTERMEDIATE,
    'v2_large': _v2(2e-4, 50.0, 5.0, 0.8, 0.2, **_LARGE),
    'v2_large_300': _v2(5e-4, 50.0, 5.0, 0.8, 0.2, **_LARGE),
    'v2_large_intermediate': _v2(7e-5, 20.0, 5.0, 0.8, 0.25, **_LARGE) | _V2_INTERMEDIATE,
}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        batch_size=1024,
        epochs=100.0,
        log_every=100,
        evaluate_every=12_500,  # about ten epochs
        save_every=2500,
        compute_dtype='bfloat16',
        pooling='mean',
        head_scale=0.001,
        label_smoothing=0.1,
        rand_augment='rand-m9-mstd0.5-inc1',
        erase=0.25,
        mix={'mixup': 0.8, 'cutmix': 1.0, 'probability': 1.0, 'switch': 0.5},
        data={
            'name': 'folder',
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.0, 0.0, 0.0),
            'evaluate_crop': 224 / 256,
            'mean': (0.5, 0.5, 0.5),
            'std': (0.5, 0.5, 0.5),
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'layer_bias',
            'layer_scale': 0.1,
            'drop_path': 0.1,
            'unroll': 24,
        },
        optimizer={
            'lr': 4e-3,
            'final_lr': 1e-6,
            'warmup_epochs': 20.0,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 0.0,
            'layer_decay': 0.65,
        },
    )
    return vary(config, arg, VARIANTS)
