"""How many tokens, and whose? Pre-training on codebooks of 128 to 8192 tokens of a discrete VAE, and on tokens that took no training.

    python -m beit_jax.tools.study --study=configs/studies/codebook.py --workdir=runs/codebook --processes=2

Tokenizers that differ in their vocabulary alone, k-means on normalised patches, and a random projection. Two cores: TIME.
"""
LEVEL = 'data.level=rotated'
STEPS = 'total_steps=2400,optimizer.warmup_steps=200'
VOCABULARIES = (128, 512, 1024, 2048, 8192)

STUDY = {
    'recipes': {'tokenizer': f'configs/quickstart/tokenizer.py:{LEVEL}', 'pretrain': f'configs/quickstart/pretrain.py:{LEVEL},{STEPS}',
                'fit_tokenizer': '--patch_size 6 --image_size 36 --data.name shapes --data.level rotated',
                'finetune': f'configs/quickstart/finetune.py:{LEVEL}'},
    'arms': {f'dVAE, {size} tokens': {'tokenizer': f'model.vocabulary={size}', 'pretrain': '', 'finetune': ''} for size in VOCABULARIES} | {
        'k-means, 128 tokens': {'fit_tokenizer': '--kind kmeans --vocabulary 128', 'pretrain': '', 'finetune': ''},
        'random projection, 128 tokens': {'fit_tokenizer': '--kind random_projection --vocabulary 128', 'pretrain': '', 'finetune': ''},
        'random projection, 8192 tokens': {'fit_tokenizer': '--kind random_projection --vocabulary 8192', 'pretrain': '', 'finetune': ''},
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'1 % of the labels': 'data.labels_per_class=20,total_steps=400,optimizer.warmup_steps=40',
              '10 %': 'data.labels_per_class=200,total_steps=400,optimizer.warmup_steps=40'},
    'baseline': 'from scratch',
    'rates': (2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
