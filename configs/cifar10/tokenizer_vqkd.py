"""VQ-KD on CIFAR-10's photographs, taught by the BEiT that was pre-trained on a discrete VAE's
tokens: 32 x 32 pixels to 8 x 8 tokens of 512 kinds, no label anywhere.

    python main.py --config=configs/cifar10/tokenizer_vqkd.py --workdir=runs/cifar10/tokenizer_vqkd

Reads the pictures and the encoder of configs/cifar10/pretrain.py, whose variants `vqkd` and `v2`
read what this writes, WORKDIR/tokenizer. Variants: `labels`, the teacher has seen a tenth of the
labels (configs/cifar10/finetune.py:data.labels_per_class=500 makes it); `tfds`, `parquet`.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'labels': {'teacher': {'path': 'runs/cifar10/finetune'}},
    'tfds': {'data': {'name': 'tfds', 'path': 'data/cifar10/3.0.2'}},
    'parquet': {'data': {'name': 'parquet', 'path': 'data/cifar10', 'image_field': 'img'}},
}


def get_config(arg: str = ''):
    config = recipe(
        'vqkd',
        batch_size=32,
        total_steps=4000,
        log_every=100,
        save_every=1000,
        compute_dtype='float32',
        teacher={'path': 'runs/cifar10/pretrain'},
        data={
            'name': 'folder',
            'path': 'data/cifar10/train',
            'holdout': 0.02,
            'image_size': 32,
            'crop_scale': (0.5, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'evaluate_crop': 1.0,
        },
        model={
            'patch_size': 4,
            'width': 64,
            'depth': 4,
            'heads': 2,
            'hidden': 256,
            'vocabulary': 512,
            'code_width': 16,
        },
        optimizer={'lr': 1e-3, 'warmup_steps': 200, 'beta2': 0.99, 'clip_norm': 1.0},
    )
    return vary(config, arg, VARIANTS)
