"""Linear probes on every layer of a frozen encoder, and k-NN, on ImageNet-1k (paper, appendix;
official run_linear_eval.py).

    python main.py --config=configs/probe_imagenet1k.py:base --workdir=DIR \\
        --config.encoder=PRETRAINED --config.data.path=/imagenet/train \\
        --config.data.evaluate_path=/imagenet/val

Variants: `base` (default), `large`; after that `in1k` (ImageNet-1k's mean and deviation) or
`vanilla` (that and absolute positions). Features are standardised, heads read CLS, the patches'
mean, and both; learning rate and weight decay are the official script's.

Expected: base vanilla 56.7 %, on the patches' mean of layer 9; of large the paper takes layer 14
(paper; not measured here).
"""

from beit_jax.settings.recipes import recipe, vary

_IN1K = {'data': {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}}
VARIANTS = {
    'base': {},
    'large': {'model': {'size': 'large', 'layer_scale': 1e-5}},
    'in1k': _IN1K,
    'vanilla': _IN1K | {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
}


def get_config(arg: str = ''):
    config = recipe(
        'probe',
        batch_size=1024,
        epochs=50.0,
        log_every=100,
        evaluate_every=12_500,
        save_every=2500,
        compute_dtype='bfloat16',
        data={
            'name': 'folder',
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'color_jitter': (0.0, 0.0, 0.0),
            'evaluate_crop': 224 / 256,
            'mean': (0.5, 0.5, 0.5),
            'std': (0.5, 0.5, 0.5),
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'shared_bias',
            'layer_scale': 0.1,
            'unroll': 24,
        },
        neighbours={'count': 20, 'temperature': 0.07, 'images': 50_000},
        optimizer={
            'lr': 4e-3,
            'final_lr': 0.0,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 1e-4,
            'clip_norm': 0.0,
        },
    )
    return vary(config, arg, VARIANTS)
