"""The published tokenizers, from PyTorch's names and layouts to ours.

They are DALL-E's encoder and decoder, BEiT's "customized" dVAE, and VQ-KD of BEiT v2.
"""

import re

from flax import traverse_util
import numpy as np

from beit_jax.errors import check
from beit_jax.models.tokenizers import customized, dvae, vqkd
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.architecture import HEAD_WIDTH, read_sizes

# Patterns of whole names, without the last part, and our paths.
# fmt: off
DALLE = (
    (r'blocks\.input',                                                 'input'),
    (r'blocks\.group_(\d{1,2})\.block_(\d{1,2})\.res_path\.conv_(\d)', r'groups/\1/\2/convs/\3'),
    (r'blocks\.group_(\d{1,2})\.block_(\d{1,2})\.id_path',             r'groups/\1/\2/shortcut'),
    (r'blocks\.output\.conv',                                          'output'),
)
CUSTOMIZED = (
    (r'codebook',                                'decoder/codebook'),
    (r'(encoder|decoder)\.(\d{1,2})\.0',         r'\1/layers/\2'),
    (r'(encoder|decoder)\.(\d{1,2})\.net\.(\d)', r'\1/layers/\2/convs/\3'),
    (r'(encoder|decoder)\.(\d{1,2})',            r'\1/output'),
)
VQKD = (
    ('quantize.embedding.weight', 'encoder/codebook'),
    *((f'{half}_task_layer.{place}.{theirs}', f'{half}r/fc{i}/{ours}')
      for half in ('encode', 'decode') for i, place in ((1, 0), (2, 2))
      for theirs, ours in (('weight', 'kernel'), ('bias', 'bias'))),
)
# what only the training of VQ-KD uses
VQKD_TRAINING = ('teacher_model.', 'scaling_layer.', 'quantize.cluster_size',
                 'quantize.embedding.cluster_size', 'quantize.embedding.embed_avg',
                 'quantize.embedding.initted')
# fmt: on


def from_vqkd(tensors: dict[str, np.ndarray]):
    """(Config, params, side of its pictures, notes) of the official code's VQKD, sizes read from
    the tensors; without a decoder where it has none.

    Raises:
      RequestError: a name that such a module does not have, or sizes that nothing tells.
    """
    halves, flat, notes = {'encoder': {}, 'decoder': {}}, {}, []
    kept = {n: array for n, array in tensors.items() if not n.startswith(VQKD_TRAINING)}
    if teacher := sum(name.startswith(VQKD_TRAINING[0]) for name in tensors):
        notes.append(f'the {teacher} tensors of the teacher are left out: a tokenizer has none')
    table = dict(VQKD)
    for name, array in names.split_qkv(kept).items():
        half, _, rest = name.partition('.')
        path = names.to_path(rest, 'unilm', 'mean') if half in halves else None
        check(bool(path or name in table), f'{name[:80]!a} is no part of a VQ-KD tokenizer.')
        axes = _axes(path or table[name])
        check(array.ndim == axes, f'{name} has {array.ndim} axes, not {axes}.')
        if path:
            place = 'vit' if path.startswith('encoder/') else 'norm'
            halves[half][path] = array
            flat[f'{half}/{place}/{path.split("/", 1 if place == "vit" else 2)[-1]}'] = (
                names.from_torch(path, array)
            )
        else:
            flat[table[name]] = array.T if table[name].endswith('kernel') else array
    codebook = flat.get('encoder/codebook')
    check(
        codebook is not None,
        'there is no quantize.embedding.weight in it: it is not of a VQKD.',
    )
    sizes = read_sizes(halves['encoder'])
    width, features = sizes['width'], flat.get('decoder/fc2/bias', np.empty(0)).size
    check(
        width % HEAD_WIDTH == 0,
        f'nothing tells its number of heads, and its width {width} is no multiple of {HEAD_WIDTH}.',
    )
    config = vqkd.Config(
        vocabulary=codebook.shape[0],
        code_width=codebook.shape[1],
        patch_size=sizes['patch_size'],
        channels=sizes['colours'],
        width=width,
        depth=sizes['depth'],
        decoder_depth=read_sizes(halves['decoder'])['depth'] if halves['decoder'] else 1,
        heads=width // HEAD_WIDTH,
        hidden=sizes['hidden'],
        features=features or vqkd.Config.features,
    )
    return config, traverse_util.unflatten_dict(flat, sep='/'), sizes['image_size'], notes


def _axes(path: str) -> int:
    """How many axes PyTorch's array has of one of our paths of VQ-KD."""
    if path.endswith('patch_embedding/kernel'):
        return 4
    if path.endswith(('_token', 'position_embedding')):
        return 3
    return 2 if path.endswith(('kernel', 'table', 'codebook')) else 1


def from_dalle(tensors: dict[str, np.ndarray]):
    """(Config, {'encoder': ...} or {'decoder': ...}) of dall_e.Encoder or dall_e.Decoder.

    Sizes are read from the tensors.

    Raises:
      RequestError: a name that such a module does not have.
    """
    flat = _renamed(tensors, DALLE, kernel='w', bias='b')
    check(
        'input/kernel' in flat and 'output/kernel' in flat,
        'there is no blocks.input.w or no blocks.output.conv.w in it.',
    )
    first, last = flat['input/kernel'], flat['output/kernel']
    check(
        first.ndim == last.ndim == 4,
        'its blocks.input.w or blocks.output.conv.w is no convolution.',
    )
    blocks = [path.split('/') for path in flat if path.startswith('groups/')]
    sizes = {
        'groups': max((int(group) for _, group, *_ in blocks), default=0),
        'blocks': max((int(block) for _, _, block, *_ in blocks), default=0),
    }
    if first.shape[:2] == (1, 1):
        half = 'decoder'
        sizes |= {'decoder_input': first.shape[3], 'vocabulary': first.shape[2]}
        sizes['width'] = last.shape[2]
    else:
        half = 'encoder'
        sizes |= {'width': first.shape[3], 'vocabulary': last.shape[3]}
    return dvae.Config(**sizes), {half: traverse_util.unflatten_dict(flat, sep='/')}


def from_customized(tensors: dict[str, np.ndarray]):
    """(Config, params) of the official code's DiscreteVAE, sizes read from the tensors.

    Raises:
      RequestError: a name that such a module does not have.
    """
    flat = _renamed(tensors, CUSTOMIZED, kernel='weight', bias='bias')
    if 'decoder/codebook/kernel' in flat:
        flat['decoder/codebook'] = flat.pop('decoder/codebook/kernel')
    for path, array in flat.items():
        if re.fullmatch(r'decoder/layers/\d+/kernel', path) and array.ndim == 4:
            # PyTorch's transposed convolution has it as [inputs, outputs, ...] and turns it round
            flat[path] = array.swapaxes(2, 3)[::-1, ::-1]
    for path in ('decoder/codebook', 'encoder/layers/0/kernel'):
        check(
            path in flat,
            'there is no codebook.weight or no encoder.0.0.weight in it: it is not of a '
            'DiscreteVAE.',
        )
    check(
        (flat['decoder/codebook'].ndim, flat['encoder/layers/0/kernel'].ndim) == (2, 4),
        'its codebook.weight is no table, or its encoder.0.0.weight no convolution.',
    )
    layers = sum(re.fullmatch(r'encoder/layers/\d+/kernel', path) is not None for path in flat)
    vocabulary, code_width = flat['decoder/codebook'].shape
    config = customized.Config(
        layers=layers,
        width=flat['encoder/layers/0/kernel'].shape[3],
        code_width=code_width,
        vocabulary=vocabulary,
    )
    return config, traverse_util.unflatten_dict(flat, sep='/')


def _renamed(tensors: dict, table, kernel: str, bias: str) -> dict[str, np.ndarray]:
    """Arrays by our paths; `kernel` and `bias` are what PyTorch calls these.

    Convolutions go from [outputs, inputs, rows, columns] to [rows, columns, inputs, outputs].
    """
    flat, leaves = {}, {kernel: 'kernel', bias: 'bias'}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition('.')
        path = _translated(module, table)
        check(bool(path) and leaf in leaves, f'{name[:80]!a} is no part of such a tokenizer.')
        path = f'{path}/{leaves[leaf]}'
        check(path not in flat, f'{name} is there under two names.')
        flat[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return flat


def _translated(module: str, table) -> str:
    """The path of a module by the first pattern that its name matches; '' where none does."""
    for pattern, path in table:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(path)
    return ''
