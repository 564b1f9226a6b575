"""BEiT pre-training on ImageNet-22k, 150 epochs (official beit/README.md): how the released `pt22k`
weights were made.

    python main.py --config=configs/pretrain_imagenet22k.py:large --workdir=DIR \\
        --config.data.path=/imagenet22k --config.tokenizer.path=TOKENIZER

Variants are the first four of pretrain_imagenet1k.py. Pixels are normalised with mean and deviation
0.5, and the warm-up is 10,000 steps.

Expected after fine-tuning on ImageNet-1k, from the official README (not measured here): base plus
83.7 % top-1 (85.2 % with intermediate fine-tuning on 22k labels), large plus 86.0 % (87.4 %).
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'base': {'model': {'size': 'base', 'layer_scale': 0.1}, 'optimizer': {'clip_norm': 3.0}},
    'large': {'model': {'size': 'large', 'layer_scale': 1e-5}, 'optimizer': {'clip_norm': 1.0}},
    'plus': {'model': {'positions': 'shared_bias'}},
    'vanilla': {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
}


def get_config(arg: str = ''):
    config = recipe(
        'pretrain',
        batch_size=2048,
        epochs=150.0,
        log_every=100,
        evaluate_every=6250,
        save_every=2500,
        compute_dtype='bfloat16',
        data={
            'name': 'folder',
            'holdout': 0.001,
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.4, 0.4, 0.4),
            'mean': (0.5, 0.5, 0.5),
            'std': (0.5, 0.5, 0.5),
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
        tokenizer={'path': ''},
        optimizer={
            'lr': 1.5e-3,
            'final_lr': 1e-5,
            'warmup_steps': 10_000,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 3.0,
        },
    )
    return vary(config, arg, VARIANTS)
