"""One table of names for both directions: ours, and those of PyTorch's three dialects.

`unilm` is the official code's, `timm` timm's, `huggingface` that of the hub. timm took its names
from the official code, so both have one column. There query, key and value are one matrix,
`attn.qkv.weight`; here its rows are called `attn.qkv.weight.query`, `.key` and `.value`, see
`split_qkv` and `join_qkv`. In a segmenter of the official code, which is mmsegmentation's, the
encoder is called `backbone`.
"""

import re

import numpy as np

from beit_jax.models.architecture import predicts_tokens, segments

DIALECTS = ('unilm', 'timm', 'huggingface')
INDEX = '.relative_position_index'  # the end of a buffer that follows from the grid
# the end of a buffer of batch norm that does nothing where its momentum is a number
COUNTER = '.num_batches_tracked'
# what BEiT v2 pre-trains CLS with: layers beside the encoder, and perhaps a norm and a head
CLS_PRETRAINING = 'cls_pt_'
OURS_CLS, OURS_CLS_BLOCK, UNILM_CLS_BLOCK = 'cls_head/', 'cls_head/layers/', 'cls_pt_layers.'

# fmt: off
ENCODER = (
    # ours; unilm and timm; huggingface
    ('encoder/cls_token', 'cls_token', 'beit.embeddings.cls_token'),
    ('encoder/mask_token', 'mask_token', 'beit.embeddings.mask_token'),
    ('encoder/position_embedding', 'pos_embed', 'beit.embeddings.position_embeddings'),
    ('encoder/patch_embedding/kernel', 'patch_embed.proj.weight',
     'beit.embeddings.patch_embeddings.projection.weight'),
    ('encoder/patch_embedding/bias', 'patch_embed.proj.bias',
     'beit.embeddings.patch_embeddings.projection.bias'),
    ('encoder/position_bias/table', 'rel_pos_bias.relative_position_bias_table',
     'beit.encoder.relative_position_bias.relative_position_bias_table'),
)
# and the number of the block
OURS_BLOCK, UNILM_BLOCK, HUGGINGFACE_BLOCK = 'encoder/blocks/', 'blocks.', 'beit.encoder.layer.'
BLOCK = (
    ('norm1/scale',            'norm1.weight',          'layernorm_before.weight'),
    ('norm1/bias',             'norm1.bias',            'layernorm_before.bias'),
    ('attention/query/kernel', 'attn.qkv.weight.query', 'attention.attention.query.weight'),
    ('attention/query/bias',   'attn.q_bias',           'attention.attention.query.bias'),
    ('attention/key/kernel',   'attn.qkv.weight.key',   'attention.attention.key.weight'),
    ('attention/value/kernel', 'attn.qkv.weight.value', 'attention.attention.value.weight'),
    ('attention/value/bias',   'attn.v_bias',           'attention.attention.value.bias'),
    ('attention/position_bias/table', 'attn.relative_position_bias_table',
     'attention.attention.relative_position_bias.relative_position_bias_table'),
    ('attention/out/kernel',   'attn.proj.weight',      'attention.output.dense.weight'),
    ('attention/out/bias',     'attn.proj.bias',        'attention.output.dense.bias'),
    ('scale1',                 'gamma_1',               'lambda_1'),
    ('norm2/scale',            'norm2.weight',          'layernorm_after.weight'),
    ('norm2/bias',             'norm2.bias',            'layernorm_after.bias'),
    ('mlp/fc1/kernel',         'mlp.fc1.weight',        'intermediate.dense.weight'),
    ('mlp/fc1/bias',           'mlp.fc1.bias',          'intermediate.dense.bias'),
    ('mlp/fc2/kernel',         'mlp.fc2.weight',        'output.dense.weight'),
    ('mlp/fc2/bias',           'mlp.fc2.bias',          'output.dense.bias'),
    ('scale2',                 'gamma_2',               'lambda_2'),
)
_CLASSES = (
    ('head/classes/kernel', 'head.weight', 'classifier.weight'),
    ('head/classes/bias',   'head.bias',   'classifier.bias'),
)
_TOKENS = (
    ('head/norm/scale',        'norm.weight',    'layernorm.weight'),
    ('head/norm/bias',         'norm.bias',      'layernorm.bias'),
    ('head/projection/kernel', 'lm_head.weight', 'lm_head.weight'),
    ('head/projection/bias',   'lm_head.bias',   'lm_head.bias'),
)
_CLS_TOKENS = tuple(
    # of the official code alone
    (OURS_CLS + ours, CLS_PRETRAINING + theirs, '') for ours, theirs, _ in _TOKENS
)
_MEAN = (
    ('head/norm/scale', 'fc_norm.weight', 'beit.pooler.layernorm.weight'),
    ('head/norm/bias',  'fc_norm.bias',   'beit.pooler.layernorm.bias'),
    *_CLASSES,
)
_CLS = (
    ('head/norm/scale', 'norm.weight', 'beit.layernorm.weight'),
    ('head/norm/bias',  'norm.bias',   'beit.layernorm.bias'),
    *_CLASSES,
)
# leaves of modules: ours, theirs
_LAYER = ('kernel', 'weight'), ('bias', 'bias')
_NORM = (
    ('scale', 'weight'), ('bias', 'bias'),
    ('running_mean', 'running_mean'), ('running_var', 'running_var'),
)
_CONV_NORM = (
    ('conv/kernel', 'conv.weight'), ('norm/scale', 'bn.weight'), ('norm/bias', 'bn.bias'),
    ('norm/running_mean', 'bn.running_mean'), ('norm/running_var', 'bn.running_var'),
)
_MODULES = (
    # of a segmenter: ours; unilm; huggingface; their leaves
    ('head/times4/deconv1',       'backbone.fpn1.0',         'fpn1.0',                    _LAYER),
    ('head/times4/norm',          'backbone.fpn1.1',         'fpn1.1',                    _NORM),
    ('head/times4/deconv2',       'backbone.fpn1.3',         'fpn1.3',                    _LAYER),
    ('head/times2/deconv',        'backbone.fpn2.0',         'fpn2.0',                    _LAYER),
    ('head/classifier',           'decode_head.conv_seg',    'decode_head.classifier',    _LAYER),
    ('head/auxiliary/classifier', 'auxiliary_head.conv_seg', 'auxiliary_head.classifier', _LAYER),
)
_CONVOLUTIONS = (
    # of a segmenter, with norms: ours; unilm and huggingface; how many there are, numbered at the #
    ('head/pools/#',         'decode_head.psp_modules.#.1', 8),
    ('head/fuse_pools',      'decode_head.bottleneck',      1),
    ('head/laterals/#',      'decode_head.lateral_convs.#', 3),
    ('head/outputs/#',       'decode_head.fpn_convs.#',     3),
    ('head/fuse',            'decode_head.fpn_bottleneck',  1),
    ('head/auxiliary/layer', 'auxiliary_head.convs.0',      1),
)
# fmt: on


def _segmenter():
    modules = list(_MODULES)
    for ours, theirs, count in _CONVOLUTIONS:
        for i in range(count):
            name = theirs.replace('#', str(i))
            modules.append((ours.replace('#', str(i)), name, name, _CONV_NORM))
    for ours, unilm, huggingface, leaves in modules:
        for leaf, theirs in leaves:
            yield f'{ours}/{leaf}', f'{unilm}.{theirs}', f'{huggingface}.{theirs}'


HEADS = {
    'tokens': _TOKENS + _CLS_TOKENS,  # of a masked image model
    'mean': _MEAN,  # of a classifier, by its pooling
    'cls': _CLS,
    'pixels': tuple(_segmenter()),
}


def head_kind(architecture: dict) -> str:
    """Which of HEADS a model has."""
    if predicts_tokens(architecture):
        return 'tokens'
    return 'pixels' if segments(architecture) else architecture['pooling']


def to_name(path: str, dialect: str, head: str) -> str:
    """The name of one of our paths ('encoder/blocks/07/mlp/fc1/bias') in a dialect.

    `head`: a key of HEADS.
    """
    column, encoder = _column(dialect), _encoder_prefix(dialect, head)
    for ours, prefix in _prefixes(dialect, encoder):
        if block := re.fullmatch(ours + r'(\d+)/(.+)', path):
            number, rest = int(block[1]), _lookup(BLOCK, 0, column)[block[2]]
            return f'{prefix}{number}.{rest}'
    if path.startswith('encoder/'):
        return encoder + _lookup(ENCODER, 0, column)[path]
    return _lookup(HEADS[head], 0, column)[path]


def to_path(name: str, dialect: str, head: str) -> str | None:
    """Our path of a name in a dialect, or None: the inverse of `to_name`."""
    column, encoder = _column(dialect), _encoder_prefix(dialect, head)
    for ours, prefix in _prefixes(dialect, encoder):
        if block := re.fullmatch(re.escape(prefix) + r'(0|[1-9]\d{0,2})\.(.+)', name):
            rest = _lookup(BLOCK, column, 0).get(block[2])
            return rest and f'{ours}{int(block[1]):02d}/{rest}'
    inside = name.removeprefix(encoder) if name.startswith(encoder) else ''
    return _lookup(ENCODER, column, 0).get(inside) or _lookup(HEADS[head], column, 0).get(name)


_PATCHES, _POSITIONS = 'encoder/patch_embedding/kernel', 'encoder/position_embedding'
_SINGLE = 'encoder/cls_token', 'encoder/mask_token'
_DECONVOLUTION = re.compile(r'/deconv\d?/')


def to_torch(path: str, array: np.ndarray, patch_size: int) -> np.ndarray:
    """One of our arrays as PyTorch lays it out.

    Linear [outputs, inputs], convolution [outputs, inputs, rows, columns], as which the patches are
    embedded, deconvolution [inputs, outputs, rows, columns], tokens with axes of length 1.
    """
    if path == _PATCHES:  # [(row, column, channel), D] -> [D, channel, row, column]
        return array.reshape(patch_size, patch_size, -1, array.shape[1]).transpose(3, 2, 0, 1)
    if path.endswith('/kernel'):
        if array.ndim == 2:
            return array.T
        return array.transpose((2, 3, 0, 1) if _DECONVOLUTION.search(path) else (3, 2, 0, 1))
    if path in _SINGLE:
        return array[None, None]
    return array[None] if path == _POSITIONS else array


def from_torch(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    if path == _PATCHES:
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    if path.endswith('/kernel'):
        if array.ndim == 2:
            return array.T
        return array.transpose((2, 3, 0, 1) if _DECONVOLUTION.search(path) else (2, 3, 1, 0))
    if path in _SINGLE:
        return array[0, 0]
    return array[0] if path == _POSITIONS else array


_PARTS = ('query', 'key', 'value')


def split_qkv(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each `*.qkv.weight` [3 D, D] as three of [D, D]; other tensors stay as they are.

    So does one whose rows do not divide by three.
    """
    split = {}
    for name, array in tensors.items():
        if name.endswith('.qkv.weight') and array.ndim == 2 and array.shape[0] % 3 == 0:
            for part, rows in zip(_PARTS, np.split(array, 3)):
                split[f'{name}.{part}'] = rows
        else:
            split[name] = array
    return split


def join_qkv(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `split_qkv`; the matrix stands where its queries stood."""
    joined = {}
    for name, array in tensors.items():
        whole, is_part = whole_qkv(name)
        if not is_part:
            joined[name] = array
        elif whole not in joined:
            joined[whole] = np.concatenate([tensors[f'{whole}.{part}'] for part in _PARTS])
    return joined


def whole_qkv(name: str) -> tuple[str, bool]:
    """(the name of the matrix that a name of `split_qkv` is a part of, true), or (name, false)."""
    whole, _, part = name.rpartition('.')
    is_part = whole.endswith('.qkv.weight') and part in _PARTS
    return (whole if is_part else name), is_part


def _column(dialect: str) -> int:
    return 2 if dialect == 'huggingface' else 1


def _prefixes(dialect: str, encoder: str) -> list[tuple[str, str]]:
    """Beginnings of the names of blocks, ours and theirs."""
    if dialect == 'huggingface':
        return [(OURS_BLOCK, HUGGINGFACE_BLOCK)]
    pairs = [(OURS_BLOCK, encoder + UNILM_BLOCK)]
    return pairs + [(OURS_CLS_BLOCK, UNILM_CLS_BLOCK)] * (dialect == 'unilm')


def _encoder_prefix(dialect: str, head: str) -> str:
    return 'backbone.' if head == 'pixels' and dialect != 'huggingface' else ''


def _lookup(rows, key: int, value: int) -> dict[str, str]:
    return {row[key]: row[value] for row in rows if row[key] and row[value]}  # '': there is none
