"""Does pre-training pay? The quickstart's encoder against the same model from random weights: ten labels a class, the same fine-tuning.

    python -m beit_jax.tools.study --study configs/studies/quickstart.py --workdir runs/quickstart/study

Needs the quickstart's runs. Each arm chooses its learning rate on 1000 validation pictures with a seed of its own, then runs with three
other seeds, which decide the labelled pictures and every random draw. Four times the steps beside it, for both.
"""
STUDY = {
    'recipe': 'configs/quickstart/finetune.py',
    'arms': {'pre-trained': '', 'from scratch': 'scratch', 'pre-trained, longer': 'long', 'from scratch, longer': 'scratch,long'},
    'rates': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
