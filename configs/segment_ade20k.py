"""Semantic segmentation of ADE20K's 150 classes by UPerNet (paper, section 3.2; official
semantic_segmentation/).

    python main.py --config=configs/segment_ade20k.py:base --workdir=DIR \\
        --config.init=PRETRAINED --config.data.path=ADEChallengeData2016

PRETRAINED is a checkpoint, a work directory or a file of PyTorch weights; its positions are fitted
to the crop. The data are the folder as published (images/training, annotations/training, ...), or
TFDS records of an image and a grey annotation (docs/data.md). Variants: `base` (default) from
pre-training; `intermediate`, from an encoder fine-tuned on ImageNet-22k first; `large`, from such a
one too. BEiT v2: `v2` and `v2_large` from pre-training, `v2_intermediate` and
`v2_large_intermediate` from such an encoder. After that `640` (crops of 640, windows every 426
pixels), `vanilla` (absolute positions, no LayerScale: the paper's tables), and `multiscale`, for
--mode=evaluate: six scales and flips.
Memory: --config.accumulate_steps=2 (batch norm then sees the parts), --config.model.remat=true. The
held-out figures are of whole pictures by windows; WORKDIR/classes.csv has the IoU of each class,
WORKDIR/images pictures of them.

Expected mIoU (not measured here):
- base vanilla, pre-trained on ImageNet-1k, 512: 45.6 % after 800 epochs, 44.65 % after 300 (paper,
  Table 4)
- intermediate, 640: 53.6 %, multiscale 54.2 %; large, 640: 56.7 %, multiscale 57.0 % (official
  README)
- BEiT v2 (beit2/README.md, beit2/semantic_segmentation): v2 53.1 %, v2_intermediate 53.5 %;
  v2_large 56.7 %, v2_large_intermediate 57.5 %
"""

from beit_jax.settings.recipes import recipe, vary


def _v2(lr, decay, drop_path, **model):
    return {
        'model': {'drop_path': drop_path} | model,
        'optimizer': {'lr': lr, 'layer_decay': decay},
    }


_LARGE = {'size': 'large', 'layer_scale': 1e-5}

VARIANTS = {
    'base': {},
    'intermediate': {'optimizer': {'lr': 3e-5, 'layer_decay': 0.9}},
    'large': {
        'model': _LARGE | {'drop_path': 0.2},
        'optimizer': {'lr': 2e-5, 'layer_decay': 0.95},
    },
    'v2': _v2(5e-5, 0.75, 0.15),
    'v2_intermediate': _v2(5e-5, 0.85, 0.15),
    'v2_large': _v2(4e-5, 0.9, 0.2, **_LARGE),
    'v2_large_intermediate': _v2(3e-5, 0.9, 0.2, **_LARGE),
    '640': {'data': {'image_size': 640}},
    'vanilla': {'model': {'positions': 'absolute', 'layer_scale': 0.0}},
    'multiscale': {'inference': {'scales': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), 'flip': True}},
}


def get_config(arg: str = ''):
    config = recipe(
        'segment',
        batch_size=16,
        total_steps=160_000,
        log_every=50,
        evaluate_every=16_000,
        save_every=2000,
        compute_dtype='bfloat16',
        auxiliary_weight=0.4,
        avg_non_ignore=False,
        distort=True,
        data={
            'name': 'folder',
            'reduce_zero_label': True,
            'image_size': 512,
            'segment_scale': (0.5, 2.0),
            'flip': True,
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
            'split': 'train',
            'evaluate_split': 'validation',
        },
        model={
            'size': 'base',
            'patch_size': 16,
            'positions': 'layer_bias',
            'layer_scale': 0.1,
            'drop_path': 0.1,
            'unroll': 24,
        },
        head={
            'taps': (),
            'channels': 0,
            'pool_scales': (1, 2, 3, 6),
            'auxiliary_channels': 256,
            'auxiliary_tap': 2,
            'dropout': 0.1,
        },
        inference={'mode': 'slide', 'stride': 0, 'windows': 16},
        optimizer={
            'lr': 7e-4,
            'final_lr': 0.0,
            'schedule': 'poly',
            'warmup_steps': 1500,
            'beta1': 0.9,
            'beta2': 0.999,
            'eps': 1e-8,
            'weight_decay': 0.05,
            'clip_norm': 0.0,
            'layer_decay': 0.65,
        },
    )
    return vary(config, arg, VARIANTS)
