"""The paper's Table 4: what do blockwise masks, tokens and hiding contribute?

    python -m beit_jax.tools.study --study=configs/studies/table4.py \\
        --workdir=runs/table4 --processes=2

The quickstart's `shapes`, model and fine-tuning with ten labels a class. Every row pre-trains for
as many steps, but for one that takes 2.67 times as many (in the paper 800 epochs instead of 300). A
seed decides everything: tokenizer, pre-training, labels and fine-tuning.
"""

SHORT = 'total_steps=1600,optimizer.warmup_steps=130'
LONG = 'total_steps=4270,optimizer.warmup_steps=350'

STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'pretrain': 'configs/quickstart/pretrain.py',
        'finetune': 'configs/quickstart/finetune.py',
    },
    'arms': {
        'BEiT': {'tokenizer': '', 'pretrain': SHORT, 'finetune': ''},
        'without blockwise masks': {'tokenizer': '', 'pretrain': f'random,{SHORT}', 'finetune': ''},
        'pixels for tokens': {'pretrain': f'pixels,{SHORT}', 'finetune': ''},
        'pixels, without blockwise masks': {'pretrain': f'pixels,random,{SHORT}', 'finetune': ''},
        'recover all tokens': {'tokenizer': '', 'pretrain': f'all,{SHORT}', 'finetune': ''},
        'nothing hidden, recover all tokens': {
            'tokenizer': '',
            'pretrain': f'unmasked,{SHORT}',
            'finetune': '',
        },
        'BEiT, 2.67 times the steps': {'tokenizer': '', 'pretrain': LONG, 'finetune': ''},
        'from scratch': {'finetune': 'scratch'},
    },
    'tasks': {'10 labels a class, 200 steps': ''},
    'baseline': 'BEiT',
    'rates': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'choosing_seeds': 2,
    'seeds': 3,
}
