"""The probe of CIFAR-10's encoder: linear heads on every layer of the frozen encoder, and k-NN,
with all labels.

    python main.py --config=configs/cifar10/probe.py --workdir=runs/cifar10/probe

Where the pictures lie: configs/cifar10/pretrain.py. Variants: `random`, an encoder with random
weights; `gpu`, ViT-tiny; `tfds`, `parquet`.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'random': {'encoder': ''},
    'gpu': {
        'compute_dtype': 'bfloat16',
        'model': {
            'width': 0,
            'depth': 0,
            'heads': 0,
            'hidden': 0,
            'init_std': 0.02,
            'unroll': 12,
        },
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
        'probe',
        encoder='runs/cifar10/pretrain',
        batch_size=250,
        total_steps=400,
        log_every=100,
        save_every=1000,
        compute_dtype='float32',
        data={
            'name': 'folder',
            'path': 'data/cifar10/train',
            'evaluate_path': 'data/cifar10/test',
            'image_size': 32,
            'crop_scale': (1.0, 1.0),
            'crop_ratio': (1.0, 1.0),
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
        neighbours={'images': 10_000, 'queries': 5_000},
        optimizer={
            'lr': 4e-2,
            'final_lr': 0.0,
            'warmup_steps': 1,
            'weight_decay': 1e-4,
            'clip_norm': 0.0,
        },
    )
    return vary(config, arg, VARIANTS)
