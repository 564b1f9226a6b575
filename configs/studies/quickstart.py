"""Does pre-training pay? The quickstart's encoder against the same model from random weights: ten
labels a class, the same fine-tuning.

    python -m beit_jax.tools.study --study=configs/studies/quickstart.py \\
        --workdir=runs/quickstart/study

Needs the quickstart's runs: its one encoder starts every seed, so the deviations are those of the
fine-tuning alone. Four times the steps beside it.
"""

STUDY = {
    'recipes': {'finetune': 'configs/quickstart/finetune.py'},
    'arms': {'pre-trained': {'finetune': ''}, 'from scratch': {'finetune': 'scratch'}},
    'tasks': {'200 steps': '', '800 steps': 'long'},
    'baseline': 'from scratch',
    'rates': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
