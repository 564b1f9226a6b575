"""The quickstart's probe: linear heads on every layer of the frozen encoder, and k-NN,
with the labels of 2000 `shapes`.

    python main.py --config=configs/quickstart/probe.py --workdir=runs/quickstart/probe

Variant: `random`, the same on an encoder with random weights. Prints a table of all layers and
writes WORKDIR/probe.json.
Expect (2 CPU cores, about 20 seconds): the best linear head above 0.55, with random weights about
0.25.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {'random': {'encoder': ''}}


def get_config(arg: str = ''):
    config = recipe(
        'probe',
        encoder='runs/quickstart/pretrain',
        batch_size=100,
        total_steps=200,
        log_every=100,
        save_every=1000,
        compute_dtype='float32',
        data={
            'name': 'shapes',
            'num_examples': 2000,
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
        optimizer={
            'lr': 4e-2,
            'final_lr': 0.0,
            'warmup_steps': 1,
            'weight_decay': 1e-4,
            'clip_norm': 0.0,
        },
    )
    return vary(config, arg, VARIANTS)
