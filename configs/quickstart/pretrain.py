"""The quickstart's pre-training: a tiny BEiT on the built-in `shapes`, 36 x 36 pixels
in 6 x 6 patches, 14 of 36 hidden.

    python main.py --config=configs/quickstart/pretrain.py --workdir=runs/quickstart/pretrain

It reads the tokenizer of configs/quickstart/tokenizer.py. Your own pictures:
configs/your_images.py. Variants are the ablations that
configs/pretrain_imagenet1k.py explains: `random`, `pixels`, `all`, `unmasked`; and BEiT v2:
`vqkd`, on the tokens of configs/quickstart/tokenizer_vqkd.py, `v2`, exactly 14 patches are hidden
and CLS is trained besides.
Expect (2 CPU cores, about a minute): token_accuracy above five times majority_accuracy, and linear
probes far above those of a random encoder (configs/quickstart/probe.py).
"""

from beit_jax.settings.recipes import recipe, vary

_VQKD = {'tokenizer': {'path': 'runs/quickstart/tokenizer_vqkd/tokenizer'}}

VARIANTS = {
    'random': {'mask': {'kind': 'random'}},
    'pixels': {'target': 'pixels'},
    'all': {'predict': 'all'},
    'unmasked': {'predict': 'all', 'mask': {'kind': 'none'}},
    'vqkd': _VQKD,
    'v2': _VQKD | {'mask': {'exact': True}, 'cls_head': {'layers': 1, 'early': 3}},
}


def get_config(arg: str = ''):
    config = recipe(
        'pretrain',
        batch_size=32,
        total_steps=1600,
        log_every=100,
        save_every=800,
        compute_dtype='float32',
        data={
            'name': 'shapes',
            'image_size': 36,
            'crop_scale': (1.0, 1.0),
            'crop_ratio': (1.0, 1.0),
            'flip': False,
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
        mask={'patches': 14, 'min_block': 4},
        tokenizer={'path': 'runs/quickstart/tokenizer/tokenizer'},
        optimizer={'lr': 2e-3, 'warmup_steps': 130, 'beta2': 0.98, 'clip_norm': 1.0},
    )
    return vary(config, arg, VARIANTS)
