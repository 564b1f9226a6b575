"""Better tokens on photographs? CIFAR-10: a discrete VAE's against those of VQ-KD, whose teacher is
the BEiT that the discrete VAE taught, or that after a tenth of the labels; with and without the
head that trains CLS.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_vqkd.py \\
        --workdir=runs/cifar10_vqkd --processes=2

Frozen encoders are probed. All arms but the two teachers take as long, with all that they come
from: the report has their hours.
"""

LONG, TEACHER, VQKD, CLASSIFY = 24_000, 8000, 3000, 2000  # steps
# Seconds of one core: what a run takes besides its steps, and a step of each kind (processor time,
# median of 34 steps on an AMD EPYC; `classify` as `dvae` without its tokenizer).
START = 15.0
COST = {'dvae': 0.116, 'vqkd': 0.140, 'on_vqkd': 0.119, 'with_cls': 0.143, 'classify': 0.111}
BEIT = 'dVAE, a third of the steps'
LABELS = f'{BEIT}, then 10 % of the labels'


def of_steps(steps: int, *settings: str) -> str:
    return ','.join((f'total_steps={steps},optimizer.warmup_steps={steps // 12}', *settings))


def taught(teacher: str, kind: str) -> dict:
    """Pre-trained on tokens of VQ-KD for what is left of the time that the arm `dVAE` takes."""
    before = {'dvae': TEACHER, 'vqkd': VQKD}
    if teacher == LABELS:
        before['classify'] = CLASSIFY
    seconds = LONG * COST['dvae'] - sum(START + n * COST[name] for name, n in before.items())
    settings = ('cls_head.layers=1,cls_head.early=3',) if kind == 'with_cls' else ()
    pretrain = of_steps(round(seconds / COST[kind]), *settings)
    return {'teacher': teacher, 'vqkd': of_steps(VQKD), 'pretrain': pretrain, 'probe': ''}


def of_dvae(steps: int) -> dict:
    return {'tokenizer': '', 'pretrain': of_steps(steps), 'probe': ''}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'vqkd': 'configs/cifar10/tokenizer_vqkd.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'classify': 'configs/cifar10/finetune.py:data.labels_per_class=500',
        'probe': 'configs/cifar10/probe.py',
    },
    'arms': {
        'dVAE': of_dvae(LONG),
        BEIT: of_dvae(TEACHER),
        LABELS: of_dvae(TEACHER) | {'classify': of_steps(CLASSIFY)},
        'VQ-KD': taught(BEIT, 'on_vqkd'),
        'VQ-KD, CLS head': taught(BEIT, 'with_cls'),
        'VQ-KD by 10 % of the labels': taught(LABELS, 'on_vqkd'),
        'VQ-KD by 10 % of the labels, CLS head': taught(LABELS, 'with_cls'),
        'random weights': {'probe': ''},
    },
    'seeds': 3,
}
