"""Is it only the longer training? Random weights on CIFAR-10, fine-tuned for as many steps as
pre-training on 307,200 pictures and its fine-tuning take together.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_scratch_long.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_scratch_long --processes=2

Beside that arm of cifar10_vs_scratch.py: the same pictures, labels and seeds.
"""

PRETRAINING = 9600  # steps

STUDY = {
    'recipes': {'finetune': 'configs/cifar10/finetune.py'},
    'arms': {'from scratch, as long as everything': {'finetune': 'scratch'}},
    'tasks': {
        f'{share} of the labels': (
            f'data.labels_per_class={labels},total_steps={PRETRAINING + steps},'
            f'optimizer.warmup_steps={(PRETRAINING + steps) // 10}'
        )
        for share, labels, steps in (('1 %', 50, 600), ('10 %', 500, 2000))
    },
    'rates': (2e-4, 5e-4, 1e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'seeds': 3,
}
