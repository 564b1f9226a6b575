"""A discrete VAE on CIFAR-10's photographs: 16 x 16 pixels, half the sides that the model sees, to
8 x 8 tokens of 512 kinds.

    python main.py --config=configs/cifar10/tokenizer.py --workdir=runs/cifar10/tokenizer

Where the pictures lie: configs/cifar10/pretrain.py. Writes WORKDIR/tokenizer, which pre-training
reads. Variants: `tfds`, `parquet`.
Expect (one CPU core, five minutes): psnr 22 dB and token_perplexity 440 on held-out pictures
(measured, one seed).
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    'tfds': {'data': {'name': 'tfds', 'path': 'data/cifar10/3.0.2'}},
    'parquet': {'data': {'name': 'parquet', 'path': 'data/cifar10', 'image_field': 'img'}},
}


def get_config(arg: str = ''):
    config = recipe(
        'tokenizer',
        batch_size=64,
        total_steps=1500,
        log_every=100,
        save_every=500,
        compute_dtype='float32',
        reconstruction='l2',
        kl_weight=0.0,
        usage_weight=0.01,
        temperature_share=0.9,
        data={
            'name': 'folder',
            'path': 'data/cifar10/train',
            'holdout': 0.02,
            'image_size': 16,
            'crop_scale': (1.0, 1.0),
            'crop_ratio': (1.0, 1.0),
            'flip': True,
            'evaluate_crop': 1.0,
        },
        model={'groups': 2, 'blocks': 1, 'width': 32, 'decoder_input': 32, 'vocabulary': 512},
        optimizer={
            'lr': 5e-3,
            'warmup_steps': 100,
            'beta2': 0.98,
            'weight_decay': 0.0,
            'clip_norm': 1.0,
        },
    )
    return vary(config, arg, VARIANTS)
