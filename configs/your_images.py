"""Your own pictures: a tokenizer trained on them, pre-training, and what the encoder knows then.

    python -m beit_jax.tools.your_images --data.path=DIR --workdir=W [--size=gpu]

does all of it. A stage alone, `tokenizer`, `pretrain`, `probe` (with `random`, of an encoder with
random weights) or `finetune`:

    python main.py --config=configs/your_images.py:pretrain,laptop,pictures=5000 \\
        --workdir=W/pretrain --config.data.path=DIR --config.tokenizer.path=W/tokenizer/tokenizer

Sizes: `laptop` (default), 64 x 64 pixels in patches of 8, for two cores; `gpu`, BEiT-B at 224 in
bfloat16, 64 pictures at a time (out of memory: --config.accumulate_steps=16); `gpu,small`, ViT-S.
`pictures=N`, how many there are to train on, says how many steps are taken: 20 times all of them in
pre-training (`gpu`: 300), but at least 64,000 pictures (2,560,000) and at most 256,000
(51,200,000); the tokenizer's and the probe's are always the same.

One picture in twenty is held out, in every stage the same; pictures are turned as their EXIF says.
Expect that you know the reconstructions again, and a probe above that of random weights. Tens of
thousands of pictures make an encoder, a few hundred a demonstration.
"""

from beit_jax.errors import check
from beit_jax.settings.overrides import change
from beit_jax.settings.recipes import recipe, vary

# times that a stage sees each picture, the fewest steps, the most
STEPS = {
    'laptop': {
        'tokenizer': (0, 800, 800),
        'pretrain': (20, 1000, 4000),
        'probe': (0, 300, 300),
        'finetune': (20, 200, 2000),
    },
    'gpu': {
        'tokenizer': (0, 10_000, 10_000),
        'pretrain': (300, 5000, 100_000),
        'probe': (0, 1000, 1000),
        'finetune': (50, 1000, 20_000),
    },
}

DATA = {
    'name': 'folder',
    'holdout': 0.05,
    'exif': True,
    'max_bad_share': 0.5,  # damaged and tiny ones are named, and no reason to stop
    'crop_scale': (0.4, 1.0),
    'crop_ratio': (3 / 4, 4 / 3),
    'flip': True,
    'evaluate_crop': 1.0,
    'color_jitter': (0.0, 0.0, 0.0),
    'mean': (0.5, 0.5, 0.5),
    'std': (0.25, 0.25, 0.25),
}
ENCODER = {
    'size': 'tiny',
    'patch_size': 8,
    'width': 96,
    'depth': 6,
    'heads': 3,
    'hidden': 384,
    'positions': 'absolute',
    'layer_scale': 0.0,
    'drop_path': 0.0,
    'init_std': 0.08,  # with it a short pre-training gets further
    'unroll': 6,
}
# stage -> (task, what a laptop does)
LAPTOP = {
    'tokenizer': (
        'tokenizer',
        {
            'batch_size': 64,
            'reconstruction': 'l2',
            'kl_weight': 0.0,
            'usage_weight': 0.01,
            'temperature_share': 0.9,
            'data': DATA | {'image_size': 32},
            'model': {
                'groups': 3,
                'blocks': 1,
                'width': 32,
                'decoder_input': 32,
                'vocabulary': 512,
            },
            'optimizer': {'lr': 5e-3, 'beta2': 0.98, 'weight_decay': 0.0, 'clip_norm': 1.0},
        },
    ),
    'pretrain': (
        'pretrain',
        {
            'batch_size': 64,
            'data': DATA | {'image_size': 64},
            'model': ENCODER,
            'mask': {'patches': 26, 'min_block': 4},
            'optimizer': {'lr': 2e-3, 'beta2': 0.98, 'clip_norm': 1.0},
        },
    ),
    'probe': (
        'probe',
        {
            'batch_size': 128,
            'data': DATA | {'image_size': 64, 'crop_scale': (1.0, 1.0)},
            'model': ENCODER,
            'neighbours': {'images': 5000, 'queries': 1000},
            'optimizer': {'lr': 4e-2, 'final_lr': 0.0, 'weight_decay': 1e-4, 'clip_norm': 0.0},
        },
    ),
    'finetune': (
        'classify',
        {
            'batch_size': 64,
            'data': DATA | {'image_size': 64},
            'model': ENCODER,
            'head_scale': 1.0,
            'erase': 0.0,
            'mix': {'mixup': 0.0, 'cutmix': 0.0},
            'optimizer': {'lr': 2e-3, 'final_lr': 1e-6, 'clip_norm': 1.0, 'layer_decay': 0.85},
        },
    ),
}
BASE = {
    'size': 'base',
    'patch_size': 16,
    'width': 0,
    'depth': 0,
    'heads': 0,
    'hidden': 0,
    'layer_scale': 0.1,
    'drop_path': 0.1,
    'init_std': 0.02,
    'unroll': 24,
}
# what a GPU does otherwise
GPU = {
    'tokenizer': {
        'batch_size': 128,
        'accumulate_steps': 2,
        'data': {'image_size': 112},
        'model': {'groups': 4, 'blocks': 2, 'width': 64, 'decoder_input': 64, 'vocabulary': 2048},
        'optimizer': {'lr': 1e-3, 'beta2': 0.999},
    },
    'pretrain': {
        'batch_size': 512,
        'accumulate_steps': 8,
        'data': {'image_size': 224, 'crop_scale': (0.2, 1.0), 'color_jitter': (0.4, 0.4, 0.4)},
        'model': BASE | {'positions': 'shared_bias'},
        'mask': {'patches': 75, 'min_block': 16},
        'optimizer': {'lr': 7e-4, 'beta2': 0.999, 'clip_norm': 3.0},
    },
    'probe': {
        'batch_size': 256,
        'data': {'image_size': 224},
        'model': BASE | {'positions': 'shared_bias', 'drop_path': 0.0},
        'neighbours': {'images': 20_000, 'queries': 10_000},
        'optimizer': {'lr': 4e-3},
    },
    'finetune': {
        'batch_size': 128,
        'accumulate_steps': 4,
        'data': {'image_size': 224},
        'model': BASE | {'positions': 'layer_bias'},
        'head_scale': 0.001,
        'rand_augment': 'rand-m9-mstd0.5-inc1',
        'erase': 0.25,
        'mix': {'mixup': 0.8, 'cutmix': 1.0},
        'optimizer': {'lr': 5e-4, 'layer_decay': 0.65},
    },
}
SMALL = {'model': {'size': 'small'}}
VARIANTS = {name: {} for name in (*LAPTOP, 'laptop', 'gpu')}
VARIANTS |= {'small': SMALL, 'random': {'encoder': ''}}


def get_config(arg: str = ''):
    given = (arg or '').split(',')
    usual = 'probe' if 'random' in given else 'pretrain'
    stage = next((part for part in given if part in LAPTOP), usual)
    size = 'gpu' if {'gpu', 'small'} & set(given) else 'laptop'
    counts = [part.partition('=')[2] for part in given if part.startswith('pictures=')] or ['5000']
    check(counts[-1].isdecimal(), f'pictures={counts[-1]}: give the number of pictures.')
    task, settings = LAPTOP[stage]
    config = recipe(task, **settings)
    change(config, {'compute_dtype': 'float32' if size == 'laptop' else 'bfloat16'})
    change(config, GPU[stage] if size == 'gpu' else {})
    times, fewest, most = STEPS[size][stage]
    steps = min(max(times * int(counts[-1]) // config.batch_size, fewest), most)
    change(
        config,
        {
            'total_steps': steps,
            'log_every': steps // 20,
            'evaluate_every': steps // 5,
            'save_every': 200 if size == 'laptop' else 1000,
            'optimizer': {'warmup_steps': steps // 10},
        },
    )
    rest = ','.join(part for part in given if not part.startswith('pictures='))
    return vary(config, rest, VARIANTS | {'small': {} if stage == 'tokenizer' else SMALL})
