"""VQ-KD on the built-in `shapes`, taught by the quickstart's pre-training: 36 x 36 pixels to 6 x 6
tokens of 128 kinds, no label anywhere.

    python main.py --config=configs/quickstart/tokenizer_vqkd.py \\
        --workdir=runs/quickstart/tokenizer_vqkd

Writes WORKDIR/tokenizer, which configs/quickstart/pretrain.py reads with `vqkd` or `v2`. Measured
once, on two CPU cores: eval/distance 0.08 (1 - cosine to the teacher), eval/codebook_usage 0.70,
eval/token_perplexity 53.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {}


def get_config(arg: str = ''):
    config = recipe(
        'vqkd',
        batch_size=32,
        total_steps=500,
        log_every=50,
        save_every=250,
        compute_dtype='float32',
        teacher={'path': 'runs/quickstart/pretrain'},
        data={
            'name': 'shapes',
            'image_size': 36,
            'crop_scale': (1.0, 1.0),
            'crop_ratio': (1.0, 1.0),
            'flip': False,
            'evaluate_crop': 1.0,
        },
        model={
            'patch_size': 6,
            'width': 64,
            'depth': 4,
            'heads': 2,
            'hidden': 256,
            'vocabulary': 128,
            'code_width': 16,
        },
        optimizer={'lr': 1e-3, 'warmup_steps': 50, 'beta2': 0.99, 'clip_norm': 1.0},
    )
    return vary(config, arg, VARIANTS)
