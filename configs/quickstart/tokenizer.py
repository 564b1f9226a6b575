"""The quickstart's tokenizer: a small discrete VAE on the built-in `shapes`, 24 x 24 pixels
to 6 x 6 tokens of 128 kinds.

    python main.py --config=configs/quickstart/tokenizer.py --workdir=runs/quickstart/tokenizer

Expect (2 CPU cores, about 40 seconds): psnr above 20 dB, token_perplexity above 70. Writes
WORKDIR/tokenizer, which pre-training reads.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {}


def get_config(arg: str = ''):
    config = recipe(
        'tokenizer',
        batch_size=32,
        total_steps=250,
        log_every=50,
        save_every=250,
        compute_dtype='float32',
        reconstruction='l2',
        kl_weight=0.0,
        usage_weight=0.01,
        temperature_share=0.9,
        data={
            'name': 'shapes',
            'image_size': 24,
            'crop_scale': (1.0, 1.0),
            'crop_ratio': (1.0, 1.0),
            'flip': False,
            'evaluate_crop': 1.0,
        },
        model={'groups': 3, 'blocks': 1, 'width': 32, 'decoder_input': 32, 'vocabulary': 128},
        optimizer={
            'lr': 5e-3,
            'warmup_steps': 20,
            'beta2': 0.98,
            'weight_decay': 0.0,
            'clip_norm': 1.0,
        },
    )
    return vary(config, arg, VARIANTS)
