"""A small study, and what its runs yield where training itself is left out."""

from beit_jax.tools import study as tool
from tests.tools.call import call

STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'pretrain': 'configs/quickstart/pretrain.py:total_steps=131',
        'finetune': 'configs/quickstart/finetune.py',
    },
    'arms': {
        'tokens': {'tokenizer': 'model.vocabulary=64', 'pretrain': '', 'finetune': ''},
        'random masks': {
            'tokenizer': 'model.vocabulary=64',
            'pretrain': 'mask.kind=random',
            'finetune': '',
        },
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'few': 'data.labels_per_class=3', 'many': 'data.labels_per_class=11,total_steps=37'},
    'baseline': 'from scratch',
    'rates': (0.25, 0.5, 1.0),
    'validation': 'data.evaluate_split=validation',
    'seeds': 2,
}
BEST = {'few': 0.5, 'many': 1.0}


def score(config, task):
    """What a fine-tuning yields in these tests: best at the rate BEST[task], better from an
    encoder, different from seed to seed."""
    from_best = abs(config.optimizer.lr - BEST.get(task, 0))
    return 0.5 + 0.2 * bool(config.init) - 0.1 * from_best + 0.03 * (config.seed % 7)


def probed(config):
    """What the best head of a probe yields."""
    return 0.3 + 0.2 * bool(getattr(config, 'encoder', '')) + 0.02 * config.seed


def write(path, **changed):
    path.write_text(f'"""Arms\ncompared.\n\nMore.\n"""\nSTUDY = {STUDY | changed}\n')


def run(path, workdir, *arguments):
    call(tool, f'--study={path}', f'--workdir={workdir}', *arguments)
