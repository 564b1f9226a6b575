"""Fine-tuning on CIFAR-10, from the pre-trained encoder, with all labels or `labels_per_class`.

    python main.py --config=configs/cifar10/finetune.py --workdir=runs/cifar10/finetune

Where the pictures lie: configs/cifar10/pretrain.py. Judged on the test pictures; to choose settings
hold out training pictures instead: --config.data.evaluate_path= --config.data.holdout=0.1.
Variants: `scratch`, the same model from random weights; `gpu`, ViT-tiny; `tfds`, `parquet`.
configs/studies/cifar10_vs_scratch.py compares.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'scratch': {'init': '', 'optimizer': {'layer_decay': 1.0}},
    'gpu': {
        'batch_size': 256,
        'compute_dtype': 'bfloat16',
        'model': {
            'width': 0,
            'depth': 0,
            'heads': 0,
            'hidden': 0,
            'init_std': 0.02,
            'unroll': 12,
        },
        'optimizer': {'lr': 1e-3, 'layer_decay': 0.75},
    },
    'tfds': {
        'data': {
            'name': 'tfds',
            'path': 'data/cifar10/3.0.2',
            'evaluate_path': '',
            'evaluate_split': 'test',
        }
    },
    'parquet': {
        'data': {
            'name': 'parquet',
            'path': 'data/cifar10',
            'image_field': 'img',
            'evaluate_path': '',
            'evaluate_split': 'test',
        }
    },
}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        init='runs/cifar10/pretrain',
        batch_size=32,
        total_steps=8000,
        log_every=100,
        save_every=2000,
        compute_dtype='float32',
        data={
            'name': 'folder',
            'path': 'data/cifar10/train',
            'evaluate_path': 'data/cifar10/test',
            'image_size': 32,
            'crop_scale': (0.5, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'evaluate_crop': 1.0,
            'color_jitter': (0.0, 0.0, 0.0),
            'mean': (0.5, 0.5, 0.5),
            'std': (0.25, 0.25, 0.25),
        },
        model={
            'size': 'tiny',
            'patch_size': 4,
            'width': 64,
            'depth': 4,
            'heads': 2,
            'hidden': 256,
            'positions': 'absolute',
            'layer_scale': 0.0,
            'drop_path': 0.0,
            'init_std': 0.08,
            'unroll': 4,
        },
        head_scale=1.0,
        label_smoothing=0.1,
        erase=0.0,
        mix={'mixup': 0.0, 'cutmix': 0.0},
        optimizer={
            'lr': 2e-3,
            'final_lr': 1e-6,
            'warmup_steps': 800,
            'weight_decay': 0.05,
            'clip_norm': 1.0,
            'layer_decay': 0.85,
        },
    )
    return vary(config, arg, VARIANTS)
