"""Whose names a file of weights has: the official code's, timm's, or Hugging Face's."""

import dataclasses

import numpy as np

from beit_jax.errors import check
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.entries import shown
from beit_jax.weights.pytorch.files import Source

# of DistributedDataParallel, torch.compile, Lightning
PREFIXES = ('module.', '_orig_mod.', 'model.')
# what a BEiT does not have
BIASES_OF_KEYS = ('attn.qkv.bias', 'attention.key.bias', 'k_proj.bias')


def identify(source: Source) -> tuple[str, dict[str, np.ndarray]]:
    """(dialect, the tensors by the dialect's own names).

    Raises:
      RequestError: they are of no BEiT.
    """
    path, tensors = source.path, dict(source.tensors)
    model_type = source.config.get('model_type', 'beit')
    check(
        model_type == 'beit',
        f'{path}: config.json says that it is a {shown(model_type)}, not a BEiT.',
    )
    check(bool(tensors), f'{path} holds no tensors.')
    check(
        not _has(tensors, 'quantize.', 'encoder/codebook'),
        f'{path} is a VQ-KD tokenizer, not an encoder: give weights of pre-training or of '
        'fine-tuning here. Pre-training takes it as config.tokenizer.path, once '
        'beit_jax.tools.import_tokenizer has made a folder of it.',
    )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    for name in tensors:
        check(
            not name.endswith(BIASES_OF_KEYS) and name != 'dist_token',
            f'{path} is a ViT or DeiT, not a BEiT: it has {name}.',
        )
    if _has(tensors, 'embeddings.', 'encoder.layer.', 'layers.'):  # saved without a head, alone
        tensors = {f'beit.{name}': array for name, array in tensors.items()}
    check(
        not _has(tensors, 'beit.layers.'),
        f'{path} has the names that transformers 5 uses in memory: write the '
        "model with its save_pretrained, which keeps the hub's names.",
    )
    if _has(tensors, 'beit.embeddings.', names.HUGGINGFACE_BLOCK):
        return 'huggingface', tensors
    if _has(tensors, 'backbone.'):
        check(
            _has(tensors, 'decode_head.') or not _has(tensors, 'backbone.layers.'),
            f'{path} has the names of mmpretrain (mmcls), which are not read here: give the '
            'weights that it was made from, of the official code, timm or transformers.',
        )
        check(
            _has(tensors, 'decode_head.'),
            f'{path} has a backbone and no decode_head: only whole segmentation models can be '
            'imported.',
        )
        return 'unilm', tensors
    first = ', '.join(ascii(name[:80]) for name in list(tensors)[:3])
    check(
        _has(tensors, 'patch_embed.', names.UNILM_BLOCK),
        f'{path} is no BEiT of the official code, timm or Hugging Face: its tensors are called '
        f'{first}, ...',
    )
    return 'timm' if _is_of_timm(source, tensors) else 'unilm', tensors


def _is_of_timm(source: Source, tensors) -> bool:
    """Whether tensors that the official code and timm call alike are timm's."""
    if source.metadata or source.arguments:
        return False
    if 'architecture' in source.config:
        return True
    # timm has tables, but neither their indices nor a head for tokens
    indices = any(name.endswith(names.INDEX) for name in tensors)
    tables = any('bias_table' in name for name in tensors)
    return tables and not indices and not _has(tensors, 'lm_head.')


def find_head(dialect: str, tensors) -> str:
    """Which of names.HEADS a file has."""
    if _has(tensors, 'decode_head.'):
        return 'pixels'
    if _has(tensors, 'lm_head.'):
        return 'tokens'
    norm = 'beit.pooler.layernorm.' if dialect == 'huggingface' else 'fc_norm.'
    return 'mean' if _has(tensors, norm) else 'cls'


def without_empty_block(source: Source, tensors: dict) -> tuple[Source, dict]:
    """The same without the block of zeros that our export appends to a segmenter of transformers.

    See `export.with_empty_block`.
    """
    depth, indices = (source.config.get(name) for name in ('num_hidden_layers', 'out_indices'))
    if not (isinstance(depth, int) and isinstance(indices, list) and indices[-1:] == [depth]):
        return source, tensors
    block = f'{names.HUGGINGFACE_BLOCK}{depth - 1}.'
    last = [name for name in tensors if name.startswith(block)]
    if not last or any(tensors[name].any() for name in last):
        return source, tensors
    config = source.config | {'num_hidden_layers': depth - 1}
    kept = {name: array for name, array in tensors.items() if name not in last}
    return dataclasses.replace(source, config=config), kept


def _has(tensors, *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in tensors)
