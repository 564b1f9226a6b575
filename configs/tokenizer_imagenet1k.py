"""A discrete VAE on ImageNet-1k as DALL-E's was trained (arXiv 2102.12092, appendix A.2): 256 x 256
pixels to 32 x 32 tokens.

    python main.py --config=configs/tokenizer_imagenet1k.py:v8192 --workdir=DIR \\
        --config.data.path=/imagenet/train --config.data.evaluate_path=/imagenet/val

Writes DIR/tokenizer, which pre-training reads at 112 x 112 pixels:
--config.tokenizer.path=DIR/tokenizer --config.tokenizer.image_size=112. Variants: the codebook,
`v512` to `v8192` (default, DALL-E's); `short`, a tenth of the steps on 128 x 128 pixels, to compare
codebooks.

DALL-E's was trained on other pictures and goes on to 3,000,000 steps at the final step size. Not
measured here. Look at codebook_usage: if many codes die, set --config.usage_weight=0.01.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {
    f'v{size}': {'model': {'vocabulary': size}} for size in (512, 1024, 2048, 4096, 8192)
} | {
    'short': {'total_steps': 120_000, 'data': {'image_size': 128}},
}


def get_config(arg: str = ''):
    config = recipe(
        'tokenizer',
        batch_size=512,
        total_steps=1_200_000,
        log_every=100,
        evaluate_every=10_000,
        save_every=5000,
        compute_dtype='bfloat16',
        ema_decay=0.999,
        reconstruction='logit_laplace',
        temperature=1.0,
        final_temperature=1 / 16,
        temperature_share=150 / 1200,
        kl_weight=6.6,
        kl_share=5 / 1200,
        usage_weight=0.0,
        # listing 1 of the paper crops 4/9 to 64/81 of the largest square: of the whole, for a
        # picture of 4 to 3, three quarters of that
        data={
            'name': 'folder',
            'image_size': 256,
            'crop_scale': (0.33, 0.6),
            'crop_ratio': (1.0, 1.0),
            'flip': True,
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'groups': 4,
            'blocks': 2,
            'width': 256,
            'decoder_input': 128,
            'vocabulary': 8192,
        },
        optimizer={
            'lr': 1e-4,
            'final_lr': 1.25e-6,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 1e-4,
            'clip_norm': 0.0,
        },
    )
    return vary(config, arg, VARIANTS)
