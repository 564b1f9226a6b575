"""Is it only the longer training, for 1,024,000 pictures too? Random weights fine-tuned on a tenth
of CIFAR-10's labels for as many steps as that pre-training and its fine-tuning take together.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_scratch_longest.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_scratch_longest --processes=2

At the rate that was best with a third of the steps (cifar10_scratch_long.py): a choice would take
as long as the runs. Beside the last arm of cifar10_vs_scratch.py: the same pictures, labels, seeds.
"""

STUDY = {
    'recipes': {'finetune': 'configs/cifar10/finetune.py'},
    'arms': {
        'from scratch, 34,000 steps': {'finetune': 'scratch,optimizer.lr=0.001'},
    },
    'tasks': {
        '10 % of the labels': (
            'data.labels_per_class=500,total_steps=34000,optimizer.warmup_steps=3400'
        ),
    },
    'seeds': 3,
}
