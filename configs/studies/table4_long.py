"""Table 4 again, where BEiT gains much: do blockwise masks, tokens and hiding pay once all rows
have trained for long?

    python -m beit_jax.tools.study --study=configs/studies/table4_long.py \\
        --workdir=runs/table4_long --processes=2

The pictures, the model and the longest pre-training of pretrain_vs_scratch.py, 204,800 pictures
seen by every row, four times as many as in table4.py; then ten labels a class. A seed decides
everything: tokenizer, pre-training, labels and fine-tuning.
"""

DATA, INIT = 'data.level=rotated', 'model.init_std=0.08'
LONG, CACHE = 'total_steps=6400,optimizer.warmup_steps=533', 'tokenizer.cache_views=1'

STUDY = {
    'recipes': {
        'tokenizer': f'configs/quickstart/tokenizer.py:{DATA}',
        'pretrain': f'configs/quickstart/pretrain.py:{DATA},{INIT},{LONG}',
        'finetune': f'configs/quickstart/finetune.py:{DATA},{INIT}',
    },
    'arms': {
        'BEiT': {'tokenizer': '', 'pretrain': CACHE, 'finetune': ''},
        'without blockwise masks': {'tokenizer': '', 'pretrain': f'random,{CACHE}', 'finetune': ''},
        'pixels for tokens': {'pretrain': 'pixels', 'finetune': ''},
        'recover all tokens': {'tokenizer': '', 'pretrain': f'all,{CACHE}', 'finetune': ''},
        'nothing hidden, recover all tokens': {
            'tokenizer': '',
            'pretrain': f'unmasked,{CACHE}',
            'finetune': '',
        },
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'10 labels a class, 400 steps': 'total_steps=400,optimizer.warmup_steps=40'},
    'baseline': 'BEiT',
    'rates': (5e-4, 1e-3, 2e-3, 4e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
