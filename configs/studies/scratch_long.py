"""Is it only the longer training? Random weights, fine-tuned for as many steps as pre-training and
fine-tuning take together.

    python -m beit_jax.tools.study --study=configs/studies/scratch_long.py \\
        --workdir=runs/scratch_long --processes=2

Beside the longest arm of pretrain_vs_scratch.py: the same pictures, labels and seeds; 6,400 steps
more than its fine-tunings have.
"""

DATA, INIT = 'data.level=rotated', 'model.init_std=0.08'

STUDY = {
    'recipes': {'finetune': f'configs/quickstart/finetune.py:{DATA},{INIT}'},
    'arms': {'from scratch, as long as everything': {'finetune': 'scratch'}},
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=20,total_steps=6800,optimizer.warmup_steps=680',
        '10 %': 'data.labels_per_class=200,total_steps=7200,optimizer.warmup_steps=720',
        '100 %': 'data.labels_per_class=0,total_steps=7600,optimizer.warmup_steps=760',
    },
    'rates': (1e-3, 2e-3, 4e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
