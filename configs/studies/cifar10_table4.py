"""The paper's Table 4 on photographs: what do blockwise masks, tokens and hiding contribute? And
the parts of the model: LayerScale, a bias shared by the layers, absolute positions.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_table4.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_table4 --processes=2

Every row pre-trains for as many steps, but for two that take three times as many (in the paper 800
epochs instead of 300). A seed decides everything: tokenizer, pre-training, labels and fine-tuning.
The four studies of CIFAR-10 share a work directory, and what they have in common.
"""

SHORT = 'total_steps=3200,optimizer.warmup_steps=200'
LONG = 'total_steps=9600,optimizer.warmup_steps=600'


def arm(variant: str = '', steps: str = SHORT, model: str = '') -> dict:
    """A pre-training on tokens; `model`: settings that all stages have in common."""
    pretrain = ','.join(filter(None, (variant, steps, model)))
    return {'tokenizer': '', 'pretrain': pretrain, 'probe': model, 'finetune': model}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'probe': 'configs/cifar10/probe.py',
        'finetune': 'configs/cifar10/finetune.py',
    },
    'arms': {
        'BEiT': arm(),
        'without blockwise masks': arm('random'),
        'pixels for tokens': {'pretrain': f'pixels,{SHORT}', 'probe': '', 'finetune': ''},
        'recover all tokens': arm('all'),
        'nothing hidden, recover all tokens': arm('unmasked'),
        'BEiT, three times the steps': arm(steps=LONG),
        'nothing hidden, three times the steps': arm('unmasked', LONG)
        | {'baseline': 'BEiT, three times the steps'},
        'LayerScale': arm(model='model.layer_scale=0.1'),
        'a bias shared by the layers': arm(model='model.positions=shared_bias')
        | {'rates': (2e-3, 4e-3, 8e-3, 1.6e-2)},
        'from scratch': {
            'probe': '',
            'finetune': 'scratch',
            'rates': (2e-4, 5e-4, 1e-3, 2e-3),
        },
    },
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=50,total_steps=600,optimizer.warmup_steps=60'
    },
    'baseline': 'BEiT',
    'rates': (1e-3, 2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'seeds': 3,
}
