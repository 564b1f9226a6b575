"""Does pre-training pay, after how many pictures, and with how many labels? Pre-training of four
lengths against random weights.

    python -m beit_jax.tools.study --study=configs/studies/pretrain_vs_scratch.py \\
        --workdir=runs/pretrain_vs_scratch --processes=2

On `shapes` turned by any angle, 36 x 36 pixels. Pre-training sees the 20,000 pictures without
labels; 1, 10 and 100 % of their labels are then used for the same fine-tuning. A seed decides
everything: the tokenizer, pre-training, which labels there are, fine-tuning. Each arm has the
learning rate that is best for it with two seeds; random weights have no layer-wise decay.
"""

DATA, INIT = 'data.level=rotated', 'model.init_std=0.08'
STEPS = {'25,600': 800, '51,200': 1600, '102,400': 3200, '204,800': 6400}  # of 32 pictures

STUDY = {
    'recipes': {
        'tokenizer': f'configs/quickstart/tokenizer.py:{DATA}',
        'pretrain': f'configs/quickstart/pretrain.py:{DATA},{INIT}',
        'finetune': f'configs/quickstart/finetune.py:{DATA},{INIT}',
    },
    'arms': {'from scratch': {'finetune': 'scratch', 'line': 'visual tokens', 'x': 0}}
    | {
        f'pre-trained on {pictures}': {
            'tokenizer': '',
            'pretrain': f'total_steps={steps},optimizer.warmup_steps={steps // 12}',
            'finetune': '',
            'line': 'visual tokens',
            'x': 32 * steps / 1000,
        }
        for pictures, steps in STEPS.items()
    },
    'axis': 'thousand pictures seen in pre-training (0: from scratch)',
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=20,total_steps=400,optimizer.warmup_steps=40',
        '10 %': 'data.labels_per_class=200,total_steps=800,optimizer.warmup_steps=80',
        '100 %': 'data.labels_per_class=0,total_steps=1200,optimizer.warmup_steps=120',
    },
    'baseline': 'from scratch',
    'rates': (2e-3, 4e-3, 8e-3),  # 1e-3 was the best for none (docs/results.md)
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'choosing_seeds': 2,
    'seeds': 3,
}
