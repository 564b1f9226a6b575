"""The control: a plain ViT on ImageNet-1k without pre-training, with DeiT-B's published settings
(arXiv 2012.12877, Table 9).

    python main.py --config=configs/scratch_imagenet1k.py --workdir=DIR \\
        --config.data.path=/imagenet/train --config.data.evaluate_path=/imagenet/val

A batch holds each image three times, each augmented another way, so an epoch sees a third of the
images. Variants: `small`, `tiny`. Weights are initialised as those of our fine-tuned models; keys
have no bias.

Expected top-1: base 81.8 %, small 79.8 %, tiny 72.2 % (DeiT paper; not measured here). BEiT's paper
compares with this 81.8 %.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {'base': {}, 'small': {'model': {'size': 'small'}}, 'tiny': {'model': {'size': 'tiny'}}}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        batch_size=1024,
        epochs=300.0,
        log_every=100,
        evaluate_every=12_500,
        save_every=2500,
        compute_dtype='bfloat16',
        pooling='cls',
        head_scale=1.0,
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
            'repeated_augmentation': 3,
            'color_jitter': (0.0, 0.0, 0.0),
            'evaluate_crop': 224 / 256,
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'absolute',
            'layer_scale': 0.0,
            'drop_path': 0.1,
            'unroll': 24,
        },
        optimizer={
            'lr': 1e-3,
            'final_lr': 1e-5,
            'warmup_epochs': 5.0,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 0.0,
            'layer_decay': 1.0,
        },
    )
    return vary(config, arg, VARIANTS)
