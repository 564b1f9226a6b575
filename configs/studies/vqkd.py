"""Better tokens? A discrete VAE's against those of VQ-KD, whose teacher is the BEiT that the
discrete VAE taught, or that after a tenth of the labels; with and without the head that trains CLS.

    python -m beit_jax.tools.study --study=configs/studies/vqkd.py --workdir=runs/vqkd \\
        --processes=2

The quickstart's `shapes` and model; frozen encoders are probed. All arms but the two teachers take
as long, with all that they come from: the report has their hours.
"""

from beit_jax.studies.better_tokens import better_tokens

STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'vqkd': 'configs/quickstart/tokenizer_vqkd.py',
        'pretrain': 'configs/quickstart/pretrain.py',
        'classify': 'configs/quickstart/finetune.py:data.labels_per_class=200',
        'probe': 'configs/quickstart/probe.py',
    },
    'arms': better_tokens(
        {'dvae': 6400, 'teacher': 1600, 'vqkd': 1600, 'classify': 800},
        # one core of an AMD EPYC, median of 80 steps
        {'dvae': 0.037, 'vqkd': 0.040, 'on_vqkd': 0.033, 'with_cls': 0.036, 'classify': 0.027},
        start_seconds=15.0,
        share='a quarter',
    ),
    'seeds': 3,
}
