"""Intermediate fine-tuning on the labels of ImageNet-22k, before configs/finetune_imagenet1k.py
(paper, section 3.1; official README).

    python main.py --config=configs/finetune_imagenet22k.py:base --workdir=DIR \\
        --config.init=PRETRAINED --config.data.path=/imagenet22k

Variants: `base` (default), `large`; of BEiT v2 (beit2/get_started_for_image_classification.md) `v2`
and `v2_large`. Then --config=configs/finetune_imagenet1k.py:base_intermediate --config.init=DIR (or
large_intermediate, v2_intermediate, v2_large_intermediate).

Expected: of this step alone no accuracy is published; after fine-tuning on ImageNet-1k base reaches
85.2 %, large 87.4 % (official README; not measured here), 1.5 points above runs without it.
"""

from beit_jax.settings.recipes import recipe, vary


def _v2(drop_path, **model):
    return {
        'mix': {'mixup': 0.8, 'cutmix': 1.0},
        'data': {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)},
        'model': {'drop_path': drop_path} | model,
        'optimizer': {'lr': 6e-4, 'warmup_epochs': 20.0, 'layer_decay': 0.75},
    }


VARIANTS = {
    'base': {},
    'large': {
        'batch_size': 2048,
        'model': {'size': 'large', 'layer_scale': 1e-5},
        'optimizer': {'lr': 2e-3, 'layer_decay': 0.75},
    },
    'v2': _v2(0.1),
    'v2_large': _v2(0.2, size='large', layer_scale=1e-5),
}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        batch_size=4096,
        epochs=90.0,
        log_every=100,
        evaluate_every=10_000,
        save_every=2500,
        compute_dtype='bfloat16',
        pooling='mean',
        head_scale=0.001,
        label_smoothing=0.1,
        rand_augment='rand-m9-mstd0.5-inc1',
        erase=0.25,
        mix={'mixup': 0.0, 'cutmix': 0.0},
        data={
            'name': 'folder',
            'holdout': 0.001,
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.0, 0.0, 0.0),
            'evaluate_crop': 224 / 256,
            'mean': (0.5, 0.5, 0.5),
            'std': (0.5, 0.5, 0.5),
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'layer_bias',
            'layer_scale': 0.1,
            'drop_path': 0.2,
            'unroll': 24,
        },
        optimizer={
            'lr': 3e-3,
            'final_lr': 1e-6,
            'warmup_epochs': 5.0,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 0.0,
            'layer_decay': 0.65,
        },
    )
    return vary(config, arg, VARIANTS)
