"""BEiT models from PyTorch's names and layouts to ours: the official code's, timm's and Hugging Face's.

The architecture is read from the tensors, and from the JSON beside them what tensors cannot show. Everything that is wrong with a file is
found before anything is refused, so that one message lists all of it.
"""
from collections import Counter
from collections.abc import Iterable
import dataclasses
import math
from pathlib import Path

from flax import traverse_util
import numpy as np

import beit_jax
from beit_jax.config import check
from beit_jax.errors import RequestError
from beit_jax.models.architecture import abstract
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.layers import num_relative_positions, relative_position_index
from beit_jax.models.presets import PRESETS
from beit_jax.weights import names
from beit_jax.weights.files import Source, read_source
from beit_jax.weights.processing import read_classes, read_processing

INDEX = '.relative_position_index'  # a buffer that follows from the grid
HEAD_WIDTH = 64  # of every released model, where no bias table shows the number of heads
MAX_DEPTH = 200
NO_FRACTIONS = 'biuSOU'  # kinds of dtypes that weights do not have


@dataclasses.dataclass(frozen=True)
class Examination:
    """What a file or folder of weights is, and what is wrong with it."""
    source: Source
    dialect: str  # of names.DIALECTS
    head: str  # a key of names.HEADS
    architecture: dict  # as checkpoints carry it; {} where it cannot be told
    classes: tuple[str, ...]  # their names; () where the file has none
    tensors: dict[str, np.ndarray]  # by our paths, laid out as in the file (query, key and value apart)
    notes: tuple[str, ...]  # what was assumed or will be changed
    problems: tuple[str, ...]  # why it cannot be imported


def examine(path: str | Path) -> Examination:
    """Reads a file or folder of weights and compares it, tensor by tensor, with the model that it says it is.

    Raises:
      RequestError: a file that cannot be read, or one that is of no BEiT.
    """
    source = read_source(path)
    dialect, tensors = _identify(source)
    head = _head(dialect, tensors)
    if head != 'tokens' and tensors.pop(names.to_name('encoder/mask_token', dialect, head), None) is not None:
        notes = ['the mask token is left out: a classifier hides nothing']
    else:
        notes = []
    split = names.split_qkv(tensors)
    placed = {name: names.to_path(name, dialect, head) for name in split}
    by_path = {path: split[name] for name, path in placed.items() if path}
    architecture = {}
    try:
        architecture = _architecture(source, dialect, head, by_path, notes)
        problems = _differences(source, dialect, head, architecture, tensors)
    except RequestError as error:
        problems = [str(error), *(f'unexpected: {name[:120]!a} {list(split[name].shape)}' for name, path in placed.items()
                                  if not path and not name.endswith(INDEX))]
    kinds = Counter(str(array.dtype) for array in tensors.values() if array.dtype.kind not in NO_FRACTIONS and array.dtype != np.float32)
    notes += [f'{count} tensors of {kind} are converted to float32' for kind, count in kinds.items()]
    classes = read_classes(source) if architecture.get('num_classes') else ()
    if len(classes) not in (0, architecture.get('num_classes')):
        problems.append(f'the JSON names {len(classes)} classes, the head has {architecture["num_classes"]}')
    return Examination(source, dialect, head, architecture, classes, by_path, tuple(notes), tuple(problems))


def convert(found: Examination) -> tuple[dict, dict]:
    """(parameters as a nested dict of float32 arrays, description as a checkpoint carries it, with `notes` and `source` besides).

    Raises:
      RequestError: lists every problem of the file.
    """
    path, problems = found.source.path, found.problems
    check(not problems, f'{path} cannot be imported as a BEiT of {found.dialect}, {len(problems)} '
          f'{"thing is" if len(problems) == 1 else "things are"} wrong:\n  ' + '\n  '.join(problems))
    flat = {ours: np.ascontiguousarray(names.from_torch(ours, array), np.float32) for ours, array in found.tensors.items()}
    source = {'files': found.source.checksums(), 'dialect': found.dialect}
    return traverse_util.unflatten_dict(flat, sep='/'), {
        'task': 'import', 'architecture': found.architecture, 'classes': list(found.classes), 'source': source, 'notes': list(found.notes),
        'versions': {'beit_jax': beit_jax.__version__}}


def _identify(source: Source) -> tuple[str, dict[str, np.ndarray]]:
    """(dialect, the tensors by the dialect's own names)."""
    path, tensors, model_type = source.path, dict(source.tensors), source.config.get('model_type', 'beit')
    check(model_type == 'beit', f'{path}: config.json says that it is a {str(model_type)[:40]!a}, not a BEiT.')
    if all(name.startswith('module.') for name in tensors):  # torch's DistributedDataParallel
        tensors = {name.removeprefix('module.'): array for name, array in tensors.items()}
    biased = [name for name in tensors if name.endswith(('attn.qkv.bias', 'attention.key.bias', 'k_proj.bias')) or name == 'dist_token']
    check(not biased, f'{path} is a ViT or DeiT, not a BEiT: it has {"".join(biased[:1])}.')
    if any(name.startswith(('embeddings.', 'encoder.layer.', 'layers.')) for name in tensors):  # a model without a head, saved alone
        tensors = {f'beit.{name}': array for name, array in tensors.items()}
    check(not any(name.startswith('beit.layers.') for name in tensors), f'{path} has the names that transformers 5 uses in memory: write the '
          "model with its save_pretrained, which keeps the hub's names.")
    check(not any(name.startswith(('decode_head.', 'auxiliary_head.')) for name in tensors), f'{path} is a segmentation model: only '
          'pre-trained models and classifiers can be imported.')
    if any(name.startswith(('beit.embeddings.', names.HUGGINGFACE_BLOCK)) for name in tensors):
        return 'huggingface', tensors
    check(any(name.startswith(('patch_embed.', names.UNILM_BLOCK)) for name in tensors), f'{path} is no BEiT of the official code, timm or '
          f'Hugging Face: its tensors are called {", ".join(ascii(name[:80]) for name in list(tensors)[:3])}, ...')
    bare = any('bias_table' in name for name in tensors) and not any(name.endswith(INDEX) or name.startswith('lm_head.') for name in tensors)
    timm = bare or 'architecture' in source.config
    return 'timm' if timm and not source.settings else 'unilm', tensors


def _head(dialect: str, tensors) -> str:
    """Which of names.HEADS a file has."""
    norm = 'beit.pooler.layernorm.' if dialect == 'huggingface' else 'fc_norm.'
    if any(name.startswith('lm_head.') for name in tensors):
        return 'tokens'
    return 'mean' if any(name.startswith(norm) for name in tensors) else 'cls'


def _vote(values: Iterable[int | None]) -> int:
    """The most frequent value, so that one damaged tensor does not decide; 0 where there is none."""
    votes = Counter(value for value in values if value)
    return votes.most_common(1)[0][0] if votes else 0


def _sizes(flat: dict[str, np.ndarray], suffix: str, axis: int) -> list[int | None]:
    """Lengths along an axis of all tensors whose path ends so."""
    return [array.shape[axis] for path, array in flat.items() if path.endswith(suffix) and array.ndim > axis]


def _architecture(source: Source, dialect: str, head: str, flat, notes: list[str]) -> dict:
    """The description of the model that the tensors are of; adds to `notes` what had to be assumed.

    Raises:
      RequestError: the tensors do not tell.
    """
    patch, config = flat.get('encoder/patch_embedding/kernel'), _config(source, dialect)
    check(patch is not None and patch.ndim == 4, 'the patch embedding, a convolution, is missing: the size of the patches cannot be told')
    check(patch.shape[1] == 3 and patch.shape[2] == patch.shape[3], f'the patch embedding {list(patch.shape)} is not for square patches of '
          'three colours')
    width, patch_size = _vote([*_sizes(flat, '/norm1/scale', 0), patch.shape[0]]), patch.shape[2]
    blocks = {int(path.split('/')[2]) for path in flat if path.startswith(names.OURS_BLOCK)}
    depth = max(blocks, default=-1) + 1
    check(0 < depth <= min(MAX_DEPTH, 2 * len(blocks)), f'it has {len(blocks)} blocks{f", the last one is block {depth - 1}" if depth else ""}')
    hidden = _vote([*_sizes(flat, '/fc1/bias', 0), *_sizes(flat, '/fc1/kernel', 0), *_sizes(flat, '/fc2/kernel', 1)])
    check(hidden > 0, 'it has no MLP')
    kinds = {'absolute': 'encoder/position_embedding' in flat, 'shared_bias': 'encoder/position_bias/table' in flat,
             'layer_bias': any(path.endswith('attention/position_bias/table') for path in flat)}
    positions = [kind for kind, there in kinds.items() if there]
    check(len(positions) == 1, f'it has positions of {len(positions)} kinds ({", ".join(positions) or "none"}): a BEiT here has one of '
          f'{", ".join(kinds)}')
    side = _vote([*map(_side_of_table, _sizes(flat, '/table', 0)), *(_root(tokens - 1) for tokens in _sizes(flat, '/position_embedding', 1))])
    check(side > 0, 'its positions are of no square grid of patches')
    heads = config.get('heads') or _vote(_sizes(flat, '/table', 1))
    if not heads:
        check(width % HEAD_WIDTH == 0, f'nothing tells its number of heads, and its width {width} is no multiple of {HEAD_WIDTH}')
        heads = width // HEAD_WIDTH
        notes.append(f'nothing tells the number of heads: {heads} of width {HEAD_WIDTH} are assumed, as in every released model')
    scaled = any(path.endswith('/scale1') for path in flat)
    sizes = {'width': width, 'depth': depth, 'heads': heads, 'hidden': hidden}
    encoder = EncoderConfig(size=next((name for name, preset in PRESETS.items() if preset == sizes), 'base'), patch_size=patch_size, **sizes,
                            positions=positions[0], layer_scale=config.get('layer_scale') or 0.1 if scaled else 0.0,
                            norm_eps=config.get('norm_eps', 1e-6), drop_path=0.0)
    if head == 'tokens':
        kind = {'architecture': 'beit_masked_image_model',
                'vocabulary': _vote(_sizes(flat, 'projection/bias', 0) + _sizes(flat, 'projection/kernel', 0))}
    else:
        num_classes = _vote(_sizes(flat, 'classes/bias', 0) + _sizes(flat, 'classes/kernel', 0)) or config.get('num_classes', 0)
        kind = {'architecture': 'beit_classifier', 'num_classes': num_classes, 'pooling': head}
    image_size = side * patch_size
    return kind | dataclasses.asdict(encoder) | {'grid': [side, side], 'image_size': image_size} | read_processing(source, image_size, notes)


def _root(number: int) -> int | None:
    root = math.isqrt(max(0, number))
    return root if root * root == number else None


def _side_of_table(rows: int) -> int | None:
    root = _root(rows - 3)
    return (root + 1) // 2 if root and num_relative_positions(((root + 1) // 2,) * 2) == rows else None


def _config(source: Source, dialect: str) -> dict:
    """What the JSON, or the arguments in the file, say of the architecture that tensors may not show."""
    if dialect == 'huggingface' and source.config:
        config = source.config
        classifier = 'BeitForImageClassification' in (config.get('architectures') or ())
        return {'heads': config.get('num_attention_heads'), 'norm_eps': config.get('layer_norm_eps', 1e-12),  # the default there
                'layer_scale': config.get('layer_scale_init_value'), 'num_classes': len(config.get('id2label') or (0, 1)) * classifier}
    arguments = source.config.get('model_args') or {}
    return {'heads': arguments.get('num_heads'), 'layer_scale': arguments.get('init_values') or source.settings.get('layer_scale_init_value'),
            'num_classes': source.config.get('num_classes') or 0}


def _differences(source: Source, dialect: str, head: str, architecture: dict, tensors) -> list[str]:
    """What is not as the architecture has it, in the dialect's own names: tensors, shapes, numbers, buffers, and the JSON beside."""
    grid, problems = tuple(architecture['grid']), []
    shapes = _shapes(architecture, dialect, head)
    for name in tensors.keys() | shapes.keys():
        if name not in tensors:
            problems.append(f'missing: {name} {list(shapes[name])}')
        elif name.endswith(INDEX):
            if not np.array_equal(tensors[name], relative_position_index(grid)):
                problems.append(f'{name} is not the index of a grid of {grid[0]} x {grid[1]} patches')
        elif name not in shapes:
            problems.append(f'unexpected: {name[:120]!a} {list(tensors[name].shape)}')
        elif tensors[name].shape != shapes[name]:
            turned = ', its transpose' if tensors[name].shape == shapes[name][::-1] else ''
            problems.append(f'{name} is {list(tensors[name].shape)}, expected {list(shapes[name])}{turned}')
        elif tensors[name].dtype.kind in NO_FRACTIONS:
            problems.append(f'{name} holds {tensors[name].dtype}, not numbers with a fraction')
        elif not np.isfinite(tensors[name]).all():
            problems.append(f'{name} has {np.count_nonzero(~np.isfinite(tensors[name]))} numbers that are NaN or infinite')
    if dialect == 'huggingface':
        problems += [f'config.json says {name} {source.config[name]!r}, the tensors {value!r}'
                     for name, value in huggingface_settings(architecture).items() if source.config.get(name, value) not in (value, [value] * 2)]
    return sorted(problems)


def _shapes(architecture: dict, dialect: str, head: str) -> dict[str, tuple[int, ...]]:
    """The state dict that the architecture has in a dialect: shapes by name."""
    _, wanted = abstract(architecture)
    nothing = {names.to_name(path, dialect, head): names.to_torch(path, np.broadcast_to(np.int8(0), leaf.shape), architecture['patch_size'])
               for path, leaf in traverse_util.flatten_dict(wanted, sep='/').items()}
    return {name: array.shape for name, array in names.join_qkv(nothing).items()}


def huggingface_settings(architecture: dict) -> dict:
    """What config.json says of a model, under its names there, as far as the tensors show it."""
    tokens = architecture['architecture'] == 'beit_masked_image_model'
    return {'hidden_size': architecture['width'], 'num_hidden_layers': architecture['depth'], 'num_attention_heads': architecture['heads'],
            'intermediate_size': architecture['hidden'], 'hidden_act': 'gelu', 'image_size': architecture['image_size'],
            'patch_size': architecture['patch_size'], 'num_channels': 3,
            'use_absolute_position_embeddings': architecture['positions'] == 'absolute',
            'use_relative_position_bias': architecture['positions'] == 'layer_bias',
            'use_shared_relative_position_bias': architecture['positions'] == 'shared_bias',
            'use_mean_pooling': tokens or architecture['pooling'] == 'mean'} | ({'vocab_size': architecture['vocabulary']} if tokens else {})
