"""Do random weights catch up when they are fine-tuned for as long as pre-training and fine-tuning take together?

    python -m beit_jax.tools.study --study=configs/studies/scratch_long.py --workdir=runs/scratch_long --processes=2

The pictures, labels and seeds of pretrain_vs_scratch.py, whose longest pre-training is 6,400 steps before 400 or 1,200 of fine-tuning.
"""
DATA, INIT = 'data.level=rotated', 'model.init_std=0.08'

STUDY = {
    'recipes': {'finetune': f'configs/quickstart/finetune.py:{DATA},{INIT}'},
    'arms': {'from scratch': {'finetune': 'scratch'}},
    'tasks': {'1 % of the labels, 6,800 steps': 'data.labels_per_class=20,total_steps=6800,optimizer.warmup_steps=680',
              '100 %, 7,600 steps': 'data.labels_per_class=0,total_steps=7600,optimizer.warmup_steps=760'},
    'rates': (1e-3, 2e-3, 4e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
