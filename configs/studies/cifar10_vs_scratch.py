"""Does pre-training pay on photographs, after how many of them, and with how many labels? CIFAR-10,
pre-training of three lengths against random weights.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_vs_scratch.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_vs_scratch --processes=2

Pre-training sees the training pictures without labels; 1 and 10 % of their labels are then used
for the same fine-tuning, judged on the test pictures (all of them: cifar10_all_labels.py). A seed
decides everything: the tokenizer, pre-training, which labels there are, fine-tuning. Each arm has
the learning rate that is best for it on a tenth of the training pictures, held out. Every encoder
is probed as well.
"""

BATCH = 32
STEPS = {'102,400': 3200, '307,200': 9600, '1,024,000': 32_000}

STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'pretrain': 'configs/cifar10/pretrain.py',
        'probe': 'configs/cifar10/probe.py',
        'finetune': 'configs/cifar10/finetune.py',
    },
    'arms': {
        'from scratch': {
            'probe': '',
            'finetune': 'scratch',
            'rates': (2e-4, 5e-4, 1e-3, 2e-3),
            'line': 'BEiT',
            'x': 0,
        }
    }
    | {
        f'pre-trained on {pictures}': {
            'tokenizer': '',
            'pretrain': f'total_steps={steps},optimizer.warmup_steps={steps // 16}',
            'probe': '',
            'finetune': '',
            'line': 'BEiT',
            'x': BATCH * steps / 1000,
        }
        for pictures, steps in STEPS.items()
    },
    'axis': 'thousand pictures seen in pre-training (0: from scratch)',
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=50,total_steps=600,optimizer.warmup_steps=60',
        '10 %': 'data.labels_per_class=500,total_steps=2000,optimizer.warmup_steps=200',
    },
    'baseline': 'from scratch',
    'rates': (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'choosing_seeds': 1,
    'seeds': 3,
}
