"""How many tokens, and whose? Pre-training on codebooks of 128 to 8192 tokens of a discrete VAE,
and on tokens that took no training.

    python -m beit_jax.tools.study --study=configs/studies/codebook.py --workdir=runs/codebook --processes=2

The quickstart's `shapes`, model and fine-tuning with ten labels a class. Discrete VAEs that differ
in their vocabulary alone, k-means on normalised patches, and a random projection.
"""

# with it a short pre-training gets further
VOCABULARIES, INIT = (128, 1024, 2048, 8192), 'model.init_std=0.08'

STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'pretrain': f'configs/quickstart/pretrain.py:{INIT},tokenizer.cache_views=1',
        'fit_tokenizer': '--patch_size 6 --image_size 36 --data.name shapes',
        'finetune': f'configs/quickstart/finetune.py:{INIT}',
    },
    'arms': {
        f'dVAE, {size} tokens': {
            'tokenizer': f'model.vocabulary={size}',
            'pretrain': '',
            'finetune': '',
        }
        for size in VOCABULARIES
    }
    | {
        'k-means, 128 tokens': {
            'fit_tokenizer': '--kind kmeans --vocabulary 128',
            'pretrain': '',
            'finetune': '',
        },
        'k-means, 1024 tokens': {
            'fit_tokenizer': '--kind kmeans --vocabulary 1024',
            'pretrain': '',
            'finetune': '',
        },
        'random projection, 128 tokens': {
            'fit_tokenizer': '--kind random_projection --vocabulary 128',
            'pretrain': '',
            'finetune': '',
        },
        'random projection, 8192 tokens': {
            'fit_tokenizer': '--kind random_projection --vocabulary 8192',
            'pretrain': '',
            'finetune': '',
        },
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'10 labels a class, 200 steps': ''},
    'baseline': 'from scratch',
    'rates': (2e-3, 4e-3, 8e-3, 1.6e-2),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'choosing_seeds': 2,
    'seeds': 3,
}
