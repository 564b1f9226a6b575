"""The quickstart's segmentation: the figure of each of 300 `shapes` pixel by pixel, from the pre-trained encoder.

    python main.py --config=configs/quickstart/segment.py --workdir=runs/quickstart/segment

Variant: `scratch`, the same model and budget from random weights. WORKDIR/images has held-out pictures with truth and prediction,
WORKDIR/classes.csv the IoU of each class.
"""
from beit_jax.recipes import recipe, vary

VARIANTS = {'scratch': {'init': '', 'optimizer': {'layer_decay': 1.0}}}


def get_config(arg: str = ''):
    return vary(recipe(
        'segment',
        init='runs/quickstart/pretrain',
        batch_size=16,
        total_steps=400,
        log_every=50,
        save_every=400,
        compute_dtype='float32',
        data={'name': 'shapes', 'image_size': 36, 'num_examples': 20_000, 'num_evaluate_examples': 500, 'segment_scale': (0.75, 1.5), 'flip': True,
              'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)},
        model={'size': 'tiny', 'patch_size': 6, 'width': 64, 'depth': 4, 'heads': 2, 'hidden': 256, 'positions': 'absolute',
               'layer_scale': 0.0, 'drop_path': 0.0, 'unroll': 4},
        head={'channels': 32, 'auxiliary_channels': 32},
        optimizer={'lr': 2e-3, 'final_lr': 0.0, 'schedule': 'linear', 'warmup_steps': 40, 'weight_decay': 0.05, 'clip_norm': 1.0,
                   'layer_decay': 0.85},
    ), arg, VARIANTS)
