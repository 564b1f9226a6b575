"""Fine-tuning on CIFAR-100 at 224 x 224 pixels: small enough for one device.

    python main.py --config=configs/finetune_cifar100.py --workdir=DIR \\
        --config.init=PRETRAINED --config.data.path=TFDS/cifar100/3.0.2

The data are TFDS records: docs/data.md has how to write them. Variants: `base` (default), `large`;
after that `in1k`, `vanilla` (see finetune_imagenet1k.py), `scratch` (random weights). Augmentation
and regularisation are those of ImageNet; epochs, batch and learning rate are ours.

Expected: BEiT's paper gives none. For orientation: DeiT-B, pre-trained with ImageNet's labels,
reaches 90.8 % (DeiT paper). Not measured here.
"""

from beit_jax.settings.recipes import recipe, vary

_IN1K = {'data': {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}}
VARIANTS = {
    'base': {},
    'large': {
        'model': {'size': 'large', 'layer_scale': 1e-5, 'drop_path': 0.2},
        'optimizer': {'lr': 1e-3, 'layer_decay': 0.75},
    },
    'in1k': _IN1K,
    'vanilla': _IN1K | {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
    'scratch': {'init': '', 'head_scale': 1.0, 'optimizer': {'lr': 1e-3, 'layer_decay': 1.0}},
}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        batch_size=512,
        epochs=100.0,
        log_every=50,
        evaluate_every=980,  # about ten epochs
        save_every=980,
        compute_dtype='bfloat16',
        pooling='mean',
        head_scale=0.001,
        label_smoothing=0.1,
        rand_augment='rand-m9-mstd0.5-inc1',
        erase=0.25,
        mix={'mixup': 0.8, 'cutmix': 1.0, 'probability': 1.0, 'switch': 0.5},
        data={
            'name': 'tfds',
            'image_size': 224,
            'crop_scale': (0.5, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.0, 0.0, 0.0),
            'evaluate_crop': 1.0,
            'mean': (0.5, 0.5, 0.5),
            'std': (0.5, 0.5, 0.5),
            'split': 'train',
            'evaluate_split': 'test',
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
            'lr': 2e-3,
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
