"""How many tokens, and whose? Pre-training on codebooks of 128 to 8192 tokens of a discrete VAE,
and on tokens that took no training.

    python -m beit_jax.tools.study --study=configs/studies/codebook.py \\
        --workdir=runs/codebook --processes=2

The quickstart's `shapes`, model and fine-tuning with ten labels a class. Discrete VAEs that differ
in their vocabulary alone, k-means on normalised patches, and a random projection.
"""

DVAE = (128, 1024, 2048, 8192)  # tokens
KMEANS, PROJECTION = '--kind kmeans --vocabulary', '--kind random_projection --vocabulary'
INIT = 'model.init_std=0.08'  # with it a short pre-training gets further


def arm(**tokenizer: str) -> dict:
    """Pre-trained on the tokens of a tokenizer: settings of the stage that makes it."""
    return tokenizer | {'pretrain': '', 'finetune': ''}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'pretrain': f'configs/quickstart/pretrain.py:{INIT},tokenizer.cache_views=1',
        'fit_tokenizer': '--patch_size 6 --image_size 36 --data.name shapes',
        'finetune': f'configs/quickstart/finetune.py:{INIT}',
    },
    'arms': {
        **{f'dVAE, {size} tokens': arm(tokenizer=f'model.vocabulary={size}') for size in DVAE},
        'k-means, 128 tokens': arm(fit_tokenizer=f'{KMEANS} 128'),
        'k-means, 1024 tokens': arm(fit_tokenizer=f'{KMEANS} 1024'),
        'random projection, 128 tokens': arm(fit_tokenizer=f'{PROJECTION} 128'),
        'random projection, 8192 tokens': arm(fit_tokenizer=f'{PROJECTION} 8192'),
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'10 labels a class, 200 steps': ''},
    'baseline': 'from scratch',
    'rates': (2e-3, 4e-3, 8e-3, 1.6e-2),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'choosing_seeds': 2,
    'seeds': 3,
}
