"""The quickstart's fine-tuning: ten labelled `shapes` a class, from the pre-trained encoder.

    python main.py --config=configs/quickstart/finetune.py --workdir=runs/quickstart/finetune

Variants: `scratch`, the same model from random weights; `long`, four times the steps.
configs/studies/quickstart.py compares them.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'scratch': {'init': '', 'optimizer': {'lr': 4e-3, 'layer_decay': 1.0}},
    'long': {'total_steps': 800},
}


def get_config(arg: str = ''):
    config = recipe(
        'classify',
        init='runs/quickstart/pretrain',
        batch_size=32,
        total_steps=200,
        log_every=50,
        save_every=1000,
        compute_dtype='float32',
        data={
            'name': 'shapes',
            'image_size': 36,
            'labels_per_class': 10,
            'crop_scale': (0.7, 1.0),
            'crop_ratio': (1.0, 1.0),
            'flip': True,
            'evaluate_crop': 1.0,
            'color_jitter': (0.0, 0.0, 0.0),
            'mean': (0.5, 0.5, 0.5),
            'std': (0.25, 0.25, 0.25),
        },
        model={
            'size': 'tiny',
            'patch_size': 6,
            'width': 64,
            'depth': 4,
            'heads': 2,
            'hidden': 256,
            'positions': 'absolute',
            'layer_scale': 0.0,
            'drop_path': 0.0,
            'unroll': 4,
        },
        head_scale=1.0,
        erase=0.0,
        mix={'mixup': 0.0, 'cutmix': 0.0},
        optimizer={
            'lr': 8e-3,
            'final_lr': 1e-6,
            'warmup_steps': 20,
            'weight_decay': 0.05,
            'clip_norm': 1.0,
            'layer_decay': 0.85,
        },
    )
    return vary(config, arg, VARIANTS)
