"""How far does it go with all labels of CIFAR-10? Fine-tuning after the longest pre-training of
cifar10_vs_scratch.py, against random weights: with as many steps, and both with as many as all of
that takes.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_all_labels.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_all_labels --processes=2

As there: three seeds, the learning rate chosen for each arm on a tenth of the training pictures,
held out, and judged on the test pictures.
"""

# as many steps as pre-training on 1,024,000 pictures and fine-tuning take together
LONG = 'total_steps=40000,optimizer.warmup_steps=4000'

PRETRAINED = {
    'tokenizer': '',
    'pretrain': 'total_steps=32000,optimizer.warmup_steps=2000',
    'finetune': '',
}

STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'finetune': 'configs/cifar10/finetune.py',
    },
    'arms': {
        'from scratch': {'finetune': 'scratch', 'rates': (5e-4, 1e-3, 2e-3)},
        # at one rate each: a choice would take as long as the runs
        'from scratch, as long as everything': {
            'finetune': f'scratch,{LONG},optimizer.lr=0.001',
            'rates': (),
        },
        'pre-trained on 1,024,000': PRETRAINED,
        'pre-trained on 1,024,000, fine-tuned as long': PRETRAINED
        | {'finetune': LONG, 'rates': ()},
    },
    'tasks': {'100 % of the labels': ''},
    'baseline': 'from scratch',
    'rates': (1e-3, 2e-3, 4e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'seeds': 3,
}
