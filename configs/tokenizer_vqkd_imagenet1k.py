"""VQ-KD, BEiT v2's tokenizer, on ImageNet-1k (beit2/TOKENIZER.md): what a teacher sees in 14 x 14
patches of 224 x 224 pixels, in 8192 tokens.

    python main.py --config=configs/tokenizer_vqkd_imagenet1k.py --workdir=DIR \\
        --config.data.path=/imagenet/train --config.data.evaluate_path=/imagenet/val \\
        --config.teacher.path=TEACHER

TEACHER: a work directory of pre-training or fine-tuning (labels are not needed: BEiT -> VQ-KD ->
BEiT v2), a released BEiT, or a ViT of timm, DeiT, DINO or CLIP (`docs/tokenizers.md`). The
published one is CLIP's ViT-B/16. Writes DIR/tokenizer, which pre-training reads as it is. Variant:
`decoder3`, three blocks in the decoder instead of one.

The published runs end with 97 to 100 % of the codes in use (codebook_usage of the evaluation). Not
measured here.
"""

from beit_jax.settings.recipes import recipe, vary

VARIANTS = {'decoder3': {'model': {'decoder_depth': 3}}}


def get_config(arg: str = ''):
    config = recipe(
        'vqkd',
        batch_size=512,
        epochs=100.0,
        log_every=50,
        evaluate_every=10_000,
        save_every=2000,
        compute_dtype='bfloat16',
        commitment=1.0,
        codebook_decay=0.99,
        unroll=12,
        data={
            'name': 'folder',
            'image_size': 224,
            'crop_scale': (0.08, 1.0),
            'flip': True,
            'split': 'train',
            'evaluate_split': 'validation',
        },
        optimizer={
            'lr': 2e-4,  # 5e-5 x batch / 128
            'final_lr': 1e-5,
            'warmup_epochs': 10.0,
            'beta1': 0.9,
            'beta2': 0.99,
            'eps': 1e-8,
            'weight_decay': 1e-4,
            'clip_norm': 0.0,
        },
    )
    return vary(config, arg, VARIANTS)
