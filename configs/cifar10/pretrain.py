"""Pre-training on CIFAR-10's photographs, without labels: a tiny BEiT, 32 x 32 pixels in 8 x 8
patches of 4 x 4, 26 of 64 hidden; a million pictures seen.

    python main.py --config=configs/cifar10/pretrain.py --workdir=runs/cifar10/pretrain

It reads the tokenizer of configs/cifar10/tokenizer.py, and pictures as files in class folders,
data/cifar10/train and data/cifar10/test, or where --config.data.path says. Other layouts:
`tfds`, the records of `tfds build cifar10` in data/cifar10/3.0.2; `parquet`, the files of the
Hugging Face hub's uoft-cs/cifar10 in data/cifar10. One picture in fifty of the training set is held
out; the test pictures are for the recipes with labels. Size for a GPU: `gpu`, ViT-tiny in bfloat16.
Ablations, which configs/pretrain_imagenet1k.py explains: `random`, `pixels`, `all`, `unmasked`.
BEiT v2: `vqkd`, on the tokens of configs/cifar10/tokenizer_vqkd.py; `v2`, exactly 26 patches are
hidden and CLS is trained besides.

Weights start with a deviation of 0.08: after 150,000 pictures a linear probe gets 43.9 % of
held-out pictures right, with the usual 0.02 40.2 % (random weights: 32.1 %; one seed each).
"""

from beit_jax.settings.recipes import recipe, vary

_VQKD = {'tokenizer': {'path': 'runs/cifar10/tokenizer_vqkd/tokenizer'}}

VARIANTS = {
    'random': {'mask': {'kind': 'random'}},
    'pixels': {'target': 'pixels'},
    'all': {'predict': 'all'},
    'unmasked': {'predict': 'all', 'mask': {'kind': 'none'}},
    'vqkd': _VQKD,
    'v2': _VQKD | {'mask': {'exact': True}, 'cls_head': {'layers': 1, 'early': 3}},
    'gpu': {
        'batch_size': 512,
        'compute_dtype': 'bfloat16',
        'model': {
            'width': 0,
            'depth': 0,
            'heads': 0,
            'hidden': 0,
            'init_std': 0.02,
            'unroll': 12,
        },
        'optimizer': {'lr': 1e-3},
    },
    'tfds': {'data': {'name': 'tfds', 'path': 'data/cifar10/3.0.2'}},
    'parquet': {'data': {'name': 'parquet', 'path': 'data/cifar10', 'image_field': 'img'}},
}


def get_config(arg: str = ''):
    config = recipe(
        'pretrain',
        batch_size=32,
        total_steps=32_000,
        log_every=100,
        save_every=1000,
        compute_dtype='float32',
        data={
            'name': 'folder',
            'path': 'data/cifar10/train',
            'holdout': 0.02,
            'image_size': 32,
            'crop_scale': (0.5, 1.0),
            'crop_ratio': (3 / 4, 4 / 3),
            'flip': True,
            'evaluate_crop': 1.0,
            'color_jitter': (0.0, 0.0, 0.0),
            'mean': (0.5, 0.5, 0.5),
            'std': (0.25, 0.25, 0.25),
        },
        model={
            'size': 'tiny',
            'patch_size': 4,
            'width': 64,
            'depth': 4,
            'heads': 2,
            'hidden': 256,
            'positions': 'absolute',
            'layer_scale': 0.0,
            'drop_path': 0.0,
            'init_std': 0.08,
            'unroll': 4,
        },
        mask={'patches': 26, 'min_block': 4},
        tokenizer={'path': 'runs/cifar10/tokenizer/tokenizer'},
        optimizer={'lr': 4e-3, 'warmup_steps': 2000, 'beta2': 0.98, 'clip_norm': 1.0},
    )
    return vary(config, arg, VARIANTS)
