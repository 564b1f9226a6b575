"""Better tokens on photographs? CIFAR-10: a discrete VAE's against those of VQ-KD, whose teacher is
the BEiT that the discrete VAE taught, or that after a tenth of the labels; with and without the
head that trains CLS.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_vqkd.py \\
        --workdir=runs/cifar10_vqkd --processes=2

Frozen encoders are probed. All arms but the two teachers take as long, with all that they come
from: the report has their hours.
"""

from beit_jax.studies.better_tokens import better_tokens

STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'vqkd': 'configs/cifar10/tokenizer_vqkd.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'classify': 'configs/cifar10/finetune.py:data.labels_per_class=500',
        'probe': 'configs/cifar10/probe.py',
    },
    'arms': better_tokens(
        {'dvae': 9600, 'teacher': 3200, 'vqkd': 1500, 'classify': 800},
        # one core of an AMD EPYC, median of 80 steps
        {'dvae': 0.049, 'vqkd': 0.067, 'on_vqkd': 0.053, 'with_cls': 0.065, 'classify': 0.037},
        start_seconds=15.0,
        share='a third',
    ),
    'seeds': 3,
}
