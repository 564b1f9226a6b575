"""How many tokens, and whose, on photographs? Pre-training on CIFAR-10 with 128 to 2048 tokens of a
discrete VAE, and with tokens that took no training.

    python -m beit_jax.tools.study --study=configs/studies/cifar10_tokenizer.py \\
        --workdir=runs/cifar10_studies --output=runs/cifar10_tokenizer --processes=2

Discrete VAEs that differ in their vocabulary alone, k-means on normalised patches, and a random
projection; then 1 % of the labels.
"""

# tokens: settings; the recipe has 512
DVAE = {128: 'model.vocabulary=128', 512: '', 2048: 'model.vocabulary=2048'}
KMEANS = 128, 2048
STEPS = 'total_steps=3200,optimizer.warmup_steps=200'


def arm(**tokenizer: str) -> dict:
    """Pre-trained on the tokens of a tokenizer: settings of the stage that makes it."""
    return tokenizer | {'pretrain': STEPS, 'probe': '', 'finetune': ''}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/cifar10/tokenizer.py',
        'fit_tokenizer': (
            '--patch_size 4 --image_size 32 --data.name folder --data.path data/cifar10/train'
        ),
        'pretrain': 'configs/cifar10/pretrain.py',
        'probe': 'configs/cifar10/probe.py',
        'finetune': 'configs/cifar10/finetune.py',
    },
    'arms': {
        **{f'dVAE, {size} tokens': arm(tokenizer=settings) for size, settings in DVAE.items()},
        **{
            f'k-means, {size} tokens': arm(fit_tokenizer=f'--kind kmeans --vocabulary {size}')
            for size in KMEANS
        },
        'random projection, 8192 tokens': arm(
            fit_tokenizer='--kind random_projection --vocabulary 8192'
        ),
        'from scratch': {
            'probe': '',
            'finetune': 'scratch',
            'rates': (2e-4, 5e-4, 1e-3, 2e-3),
        },
    },
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=50,total_steps=600,optimizer.warmup_steps=60'
    },
    'baseline': 'from scratch',
    'rates': (1e-3, 2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_path=,data.holdout=0.1',
    'seeds': 3,
}
