"""The quickstart's segmentation: which figure, or the ground, each pixel of `shapes` belongs to,
from the pre-trained encoder.

    python main.py --config=configs/quickstart/segment.py --workdir=runs/quickstart/segment

Variant: `scratch`, the same model and budget from random weights. WORKDIR/images has held-out
pictures with truth and prediction, WORKDIR/classes.csv the IoU of each class. Expect (2 CPU cores,
two minutes): mIoU about 0.8, from random weights about 0.77.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {'scratch': {'init': ''}}


def get_config(arg: str = ''):
    config = recipe(
        'segment',
        init='runs/quickstart/pretrain',
        batch_size=16,
        total_steps=800,
        log_every=50,
        evaluate_every=200,
        save_every=400,
        compute_dtype='float32',
        distort=False,  # these pictures are grey
        data={
            'name': 'shapes',
            'num_evaluate_examples': 500,
            'image_size': 36,
            'segment_scale': (1.0, 1.25),
            'flip': True,
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
        head={'channels': 32, 'auxiliary_channels': 32},
        optimizer={
            'lr': 8e-3,
            'final_lr': 0.0,
            'schedule': 'linear',
            'warmup_steps': 40,
            'weight_decay': 0.05,
            'clip_norm': 1.0,
        },
    )
    return vary(config, arg, VARIANTS)
