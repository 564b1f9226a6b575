"""Does pre-training pay on harder and larger pictures? The upper rungs of the ladder of `shapes`,
64 x 64 and 128 x 128 pixels.

    python -m beit_jax.tools.study --study=configs/studies/levels.py \\
        --workdir=runs/levels --processes=2

`cluttered` is a figure turned by any angle, stripes on all there is and small grey figures behind;
`occluded` has a bar across the figure too. 153,600 pictures seen without labels, then 1 % of the
labels of 20,000. One arm hides nothing: does that still do better than BEiT, as in table4_long.py,
where a visible patch tells less of the figure? Two see three times the pictures: how much more does
it pay then, and does hiding?
"""

INIT = 'model.init_std=0.08'
MASK = 'mask.patches=25,mask.min_block=6'
STEPS = 'total_steps=4800,optimizer.warmup_steps=400'  # of 32 pictures
BEIT = {'pre-trained': ''}  # and its ablations: settings of pre-training
LONG = 'total_steps=14400,optimizer.warmup_steps=1200,'
LONGER = {
    'pre-trained, three times as long': LONG,
    'nothing hidden, three times as long': f'unmasked,{LONG}',
}


def arms(level: str, size: int, groups: int, variants: dict) -> dict:
    """8 x 8 patches, and a tokenizer that sees the picture at half its size, as in BEiT."""
    name, data = f'{level}, {size} px', f'data.level={level}'
    finetune = f'{data},data.image_size={size},model.patch_size={size // 8}'
    found = {}
    for how, variant in variants.items():
        found[f'{name}, {how}'] = {
            'tokenizer': f'{data},data.image_size={size // 2},model.groups={groups}',
            'pretrain': f'{variant}{finetune}',
            'finetune': finetune,
            'baseline': f'{name}, from scratch',
        }
    return found | {f'{name}, from scratch': {'finetune': f'scratch,{finetune}'}}


STUDY = {
    'recipes': {
        'tokenizer': 'configs/quickstart/tokenizer.py',
        'finetune': f'configs/quickstart/finetune.py:{INIT}',
        'pretrain': f'configs/quickstart/pretrain.py:{INIT},{STEPS},{MASK},tokenizer.cache_views=1',
    },
    'arms': arms('cluttered', 64, 3, BEIT | LONGER)
    | arms('occluded', 64, 3, BEIT | {'pre-trained, nothing hidden': 'unmasked,'})
    | arms('cluttered', 128, 4, BEIT)
    | arms('occluded', 128, 4, BEIT),
    'tasks': {
        '1 % of the labels': 'data.labels_per_class=20,total_steps=400,optimizer.warmup_steps=40'
    },
    'rates': (2e-3, 4e-3, 8e-3),
    'validation': 'data.evaluate_split=validation,data.num_evaluate_examples=1000',
    'seeds': 3,
}
