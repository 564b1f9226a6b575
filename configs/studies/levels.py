"""On which pictures does pre-training pay, and after how many? Every rung of the ladder of `shapes`, 64 x 64 pixels.

    python -m beit_jax.tools.study --study=configs/studies/levels.py --workdir=runs/levels --processes=2

Each rung adds one thing to the one before: `easy` (a bright figure on a dark ground), `rotated` (by any angle), `textured` (stripes),
`cluttered` (small grey figures behind), `occluded` (a bar across the figure). Labels are 1 % of 20,000.
"""
LEVELS = ('easy', 'rotated', 'textured', 'cluttered', 'occluded')
SIZE, INIT = 'data.image_size=64,model.patch_size=8', 'model.init_std=0.08'
STEPS = (1600, 6400)  # of 32 pictures


def arms():
    for level in LEVELS:
        data = f'data.level={level}'
        yield f'{level}, from scratch', {'finetune': f'scratch,{data}', 'line': level, 'x': 0}
        for steps in STEPS:
            yield f'{level}, pre-trained on {32 * steps:,}', {
                'tokenizer': data, 'pretrain': f'{data},total_steps={steps},optimizer.warmup_steps={steps // 12}', 'finetune': data,
                'line': level, 'x': 32 * steps / 1000}


STUDY = {
    'recipes': {'tokenizer': 'configs/quickstart/tokenizer.py:data.image_size=32', 'finetune': f'configs/quickstart/finetune.py:{SIZE},{INIT}',
                'pretrain': f'configs/quickstart/pretrain.py:{SIZE},{INIT},mask.patches=25,mask.min_block=6,tokenizer.cache_views=1'},
    'arms': dict(arms()),
    'axis': 'thousand pictures seen in pre-training (0: from scratch)',
    'tasks': {'1 % of the labels': 'data.labels_per_class=20,total_steps=400,optimizer.warmup_steps=40'},
    'rates': (2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
