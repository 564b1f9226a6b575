"""A larger encoder on photographs, in ten minutes of one GPU: ViT-tiny on CIFAR-10, pre-trained on
a million pictures or not at all, then 1 and 10 % of the labels.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_gpu.py \\
        --workdir=runs/cifar10_gpu --processes=6

Six processes share the GPU: one reads pictures of this size slower than a GPU takes them. Stopped,
the same command goes on; three seeds: --seeds=3.
"""

STEPS = 'gpu,total_steps=2000,optimizer.warmup_steps=125'  # of 512


def arm(variant: str = '') -> dict:
    pretrain = ','.join(filter(None, (STEPS, variant)))
    return {'tokenizer': '', 'pretrain': pretrain, 'probe': 'gpu', 'finetune': 'gpu'}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'probe': 'configs/cifar10/probe.py',
        'finetune': 'configs/cifar10/finetune.py',
    },
    'arms': {
        'from scratch': {'probe': 'gpu', 'finetune': 'gpu,scratch'},
        'BEiT': arm(),
        'pixels for tokens': {'pretrain': f'{STEPS},pixels', 'probe': 'gpu', 'finetune': 'gpu'},
        'nothing hidden, recover all tokens': arm('unmasked'),
    },
    'tasks': {
        '1 % of the labels': (
            'batch_size=64,data.labels_per_class=50,total_steps=600,optimizer.warmup_steps=60'
        ),
        '10 %': (
            'batch_size=64,data.labels_per_class=500,total_steps=2000,optimizer.warmup_steps=200'
        ),
    },
    'baseline': 'from scratch',
    'rates': (5e-4, 2e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'seeds': 2,
}
