"""BEiT models from PyTorch's names and layouts to ours: the official code's, timm's and Hugging
Face's.

The architecture is read from the tensors, and from what is said beside them what tensors cannot
show. Everything that is wrong with a file is found before anything is refused, so that one message
lists all of it.
"""

from collections import Counter
import dataclasses
import math
from pathlib import Path

from flax import traverse_util
import ml_dtypes
import numpy as np

import beit_jax
from beit_jax.errors import RequestError, check
from beit_jax.models.architecture import abstract, head_config, predicts_tokens, segments
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.layers import num_relative_positions, relative_position_index
from beit_jax.models.presets import PRESETS
from beit_jax.models.upernet import UperNetConfig
from beit_jax.weights import names
from beit_jax.weights.facts import HALF, IMAGENET, Facts, read_facts, shown, usual_crop
from beit_jax.weights.files import Source, read_source

INDEX = '.relative_position_index'  # a buffer that follows from the grid
# a buffer of batch norm that does nothing where its momentum is a number
COUNTER = '.num_batches_tracked'
HEAD_WIDTH = 64  # of every released model, where nothing shows the number of heads
MAX_DEPTH = 200
# of DistributedDataParallel, torch.compile, Lightning
PREFIXES = ('module.', '_orig_mod.', 'model.')


@dataclasses.dataclass(frozen=True)
class Examination:
    """What a file or folder of weights is, and what is wrong with it."""

    source: Source
    dialect: str  # of names.DIALECTS
    architecture: dict  # as checkpoints carry it; {} where it cannot be told
    classes: tuple[str, ...]  # their names; () where the file has none
    # by our paths, laid out as in the file (query, key and value apart)
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]  # what was assumed or will be changed
    problems: tuple[str, ...]  # why it cannot be imported


def examine(path: str | Path, mean: tuple | None = None, std: tuple | None = None) -> Examination:
    """Reads a file or folder of weights and compares it, tensor by tensor, with the model that it
    says it is.

    Args:
      path: see `read_source`.
      mean, std: of its pixels in [0, 1], instead of what is said there or assumed.

    Raises:
      RequestError: a file that cannot be read, or one that is of no BEiT.
    """
    source = read_source(path)
    dialect, tensors = _identify(source)
    if dialect == 'huggingface':
        source, tensors = _without_empty_block(source, tensors)
    head, notes, problems, architecture, facts = _head(dialect, tensors), [], [], {}, Facts()
    if (
        head != 'tokens'
        and tensors.pop(names.to_name('encoder/mask_token', dialect, head), None) is not None
    ):
        notes.append('the mask token is left out: a classifier hides nothing')
    counters = [
        name
        for name in tensors
        if head == 'pixels'
        and name.endswith(COUNTER)
        and tensors[name].shape == ()
        and tensors[name].dtype == np.int64
    ]
    counts = [int(tensors.pop(name)) for name in counters]
    split = names.split_qkv(tensors)
    placed = {name: names.to_path(name, dialect, head) for name in split}
    by_path = {path: split[name] for name, path in placed.items() if path}
    try:
        sizes = _sizes(by_path)
        facts = read_facts(source, dialect, sizes['image_size'], head == 'pixels')
        architecture, assumed = _architecture(source, sizes, facts, head, mean, std)
        architecture |= {'batches_tracked': max(counts)} if counts else {}
        problems += _differences(dialect, head, architecture, facts, tensors)
        notes += [*facts.notes, *assumed]
    except RequestError as error:
        problems += [
            str(error),
            *(
                f'unexpected: {name[:120]!a} {list(split[name].shape)}'
                for name, path in placed.items()
                if not path and not name.endswith(INDEX)
            ),
        ]
    kinds = Counter(
        str(array.dtype)
        for array in tensors.values()
        if _has_fractions(array) and array.dtype != np.float32
    )
    notes += [
        f'{count} tensors of {kind} are converted to float32' for kind, count in kinds.items()
    ]
    notes += [f'{name}, other weights in the file, is not used' for name in source.unused]
    return Examination(
        source,
        dialect,
        architecture,
        facts.classes if architecture.get('num_classes') else (),
        by_path,
        tuple(notes),
        tuple(problems),
    )


def convert(found: Examination) -> tuple[dict, dict]:
    """(parameters as a nested dict of float32 arrays, description as a checkpoint carries it, with
    `notes` and `source` besides).

    Raises:
      RequestError: lists every problem of the file.
    """
    check_problems(found)
    flat = {
        ours: np.ascontiguousarray(names.from_torch(ours, array), np.float32)
        for ours, array in found.tensors.items()
    }
    source = {'files': found.source.checksums(), 'dialect': found.dialect}
    return traverse_util.unflatten_dict(flat, sep='/'), {
        'task': 'import',
        'architecture': found.architecture,
        'classes': list(found.classes),
        'source': source,
        'notes': list(found.notes),
        'versions': {'beit_jax': beit_jax.__version__},
    }


def check_problems(found: Examination) -> None:
    """Raises RequestError with all that is wrong with a file, a line each."""
    count = len(found.problems)
    check(
        not count,
        f'{found.source.path} cannot be imported as a BEiT with names of {found.dialect}, {count} '
        f'{"thing is" if count == 1 else "things are"} wrong:\n  ' + '\n  '.join(found.problems),
    )


def _identify(source: Source) -> tuple[str, dict[str, np.ndarray]]:
    """(dialect, the tensors by the dialect's own names)."""
    path, tensors, model_type = (
        source.path,
        dict(source.tensors),
        source.config.get('model_type', 'beit'),
    )
    check(
        model_type == 'beit',
        f'{path}: config.json says that it is a {shown(model_type)}, not a BEiT.',
    )
    check(bool(tensors), f'{path} holds no tensors.')
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    biased = [
        name
        for name in tensors
        if name.endswith(('attn.qkv.bias', 'attention.key.bias', 'k_proj.bias'))
        or name == 'dist_token'
    ]
    check(not biased, f'{path} is a ViT or DeiT, not a BEiT: it has {"".join(biased[:1])}.')
    # a model without a head, saved alone
    if any(name.startswith(('embeddings.', 'encoder.layer.', 'layers.')) for name in tensors):
        tensors = {f'beit.{name}': array for name, array in tensors.items()}
    check(
        not any(name.startswith('beit.layers.') for name in tensors),
        f'{path} has the names that transformers 5 uses in memory: write the '
        "model with its save_pretrained, which keeps the hub's names.",
    )
    if any(name.startswith(('beit.embeddings.', names.HUGGINGFACE_BLOCK)) for name in tensors):
        return 'huggingface', tensors
    if any(name.startswith('backbone.') for name in tensors):
        check(
            _is_segmenter(tensors),
            f'{path} has a backbone and no decode_head: only whole segmentation models can be '
            'imported.',
        )
        return 'unilm', tensors
    check(
        any(name.startswith(('patch_embed.', names.UNILM_BLOCK)) for name in tensors),
        f'{path} is no BEiT of the official code, timm or Hugging Face: its tensors are called '
        f'{", ".join(ascii(name[:80]) for name in list(tensors)[:3])}, ...',
    )
    if source.metadata or source.arguments:
        return 'unilm', tensors
    # which timm does not have
    indices = any(name.endswith(INDEX) or name.startswith('lm_head.') for name in tensors)
    bare = any('bias_table' in name for name in tensors) and not indices
    return 'timm' if bare or 'architecture' in source.config else 'unilm', tensors


def _head(dialect: str, tensors) -> str:
    """Which of names.HEADS a file has."""
    if _is_segmenter(tensors):
        return 'pixels'
    norm = 'beit.pooler.layernorm.' if dialect == 'huggingface' else 'fc_norm.'
    if any(name.startswith('lm_head.') for name in tensors):
        return 'tokens'
    return 'mean' if any(name.startswith(norm) for name in tensors) else 'cls'


def _without_empty_block(source: Source, tensors: dict) -> tuple[Source, dict]:
    """The same without the block of zeros that our export appends to a segmenter of transformers
    (see `export.with_empty_block`)."""
    depth, indices = (source.config.get(name) for name in ('num_hidden_layers', 'out_indices'))
    last = (
        [name for name in tensors if name.startswith(f'{names.HUGGINGFACE_BLOCK}{depth - 1}.')]
        if (isinstance(depth, int) and isinstance(indices, list) and indices[-1:] == [depth])
        else []
    )
    if not last or any(tensors[name].any() for name in last):
        return source, tensors
    config = source.config | {'num_hidden_layers': depth - 1}
    return dataclasses.replace(source, config=config), {
        name: array for name, array in tensors.items() if name not in last
    }


def _is_segmenter(tensors) -> bool:
    return any(name.startswith('decode_head.') for name in tensors)


def _sizes(by_path: dict[str, np.ndarray]) -> dict:
    """What the tensors show. Each size is the one that most of them have, so that a damaged one
    does not decide.

    Raises:
      RequestError: the tensors do not tell.
    """

    def vote(*places: tuple[str, int], of=lambda length: length) -> int:
        """The most frequent length of an axis of the tensors whose paths end so; 0 where there is
        none."""
        lengths = (
            of(array.shape[axis])
            for path, array in by_path.items()
            for suffix, axis in places
            if path.endswith(suffix) and array.size and array.ndim > axis
        )
        return next(iter(Counter(length for length in lengths if length).most_common(1)), (0,))[0]

    patch = by_path.get('encoder/patch_embedding/kernel', np.empty(0))
    check(
        patch.ndim == 4 and patch.size > 0,
        'the patch embedding, a convolution, is missing: the size of the patches cannot be told',
    )
    check(
        patch.shape[1] == 3 and patch.shape[2] == patch.shape[3],
        f'the patch embedding {list(patch.shape)} is not for square patches of three colours',
    )
    blocks = {int(path.split('/')[2]) for path in by_path if path.startswith(names.OURS_BLOCK)}
    depth = max(blocks, default=-1) + 1
    check(
        0 < depth <= min(MAX_DEPTH, 2 * len(blocks)),
        f'it has {len(blocks)} blocks{f", the last one is block {depth - 1}" if depth else ""}',
    )
    kinds = {
        'absolute': 'encoder/position_embedding' in by_path,
        'shared_bias': 'encoder/position_bias/table' in by_path,
        'layer_bias': any(path.endswith('attention/position_bias/table') for path in by_path),
    }
    positions = [kind for kind, there in kinds.items() if there]
    check(
        len(positions) == 1,
        f'it has positions of {len(positions)} kinds ({", ".join(positions) or "none"}): a BEiT '
        f'here has one of {", ".join(kinds)}',
    )
    tables, embedding = (('bias/table', 0),), (('/position_embedding', 1),)
    side = (
        vote(*embedding, of=lambda tokens: _root(tokens - 1))
        if positions == ['absolute']
        else vote(*tables, of=_side_of_table)
    )
    check(side > 0, 'its positions are of no square grid of patches')
    sizes = {
        'width': vote(('/norm1/scale', 0), ('patch_embedding/kernel', 0)),
        'depth': depth,
        'heads': vote(('bias/table', 1)),
        'hidden': vote(('/fc1/bias', 0), ('/fc1/kernel', 0), ('/fc2/kernel', 1)),
        'patch_size': patch.shape[2],
        'vocabulary': vote(('projection/bias', 0), ('projection/kernel', 0)),
        'num_classes': vote(
            ('/classes/bias', 0),
            ('/classes/kernel', 0),
            ('/classifier/bias', 0),
            ('/classifier/kernel', 0),
        ),
        'channels': vote(('head/fuse/conv/kernel', 0), ('/outputs/0/conv/kernel', 0)),
        'auxiliary_channels': vote(
            ('/auxiliary/layer/conv/kernel', 0), ('/auxiliary/layer/norm/scale', 0)
        ),
        'pools': 1
        + max(
            (int(path.split('/')[2]) for path in by_path if path.startswith('head/pools/')),
            default=-1,
        ),
    }
    check(sizes['hidden'] > 0, 'it has no MLP')
    return sizes | {
        'positions': positions[0],
        'scaled': any(path.endswith('/scale1') for path in by_path),
        'grid': [side, side],
        'image_size': side * patch.shape[2],
    }


def _root(number: int) -> int | None:
    root = math.isqrt(max(0, number))
    return root if root * root == number else None


def _side_of_table(rows: int) -> int | None:
    """The side of the square grid whose bias table has so many rows."""
    side = ((_root(rows - 3) or 0) + 1) // 2
    return side if side and num_relative_positions((side, side)) == rows else None


def _architecture(
    source: Source, sizes: dict, facts: Facts, head: str, mean, std
) -> tuple[dict, list[str]]:
    """(the description that checkpoints carry, what had to be assumed for it).

    Raises:
      RequestError: sizes that do not fit one another.
    """
    assumed, width, heads = [], sizes['width'], facts.heads or sizes['heads']
    if not heads:
        check(
            width % HEAD_WIDTH == 0,
            f'nothing tells its number of heads, and its width {width} is no multiple of '
            f'{HEAD_WIDTH}',
        )
        heads = width // HEAD_WIDTH
        assumed.append(
            f'nothing tells the number of heads: {heads} of width {HEAD_WIDTH} are assumed, as in '
            'every released model'
        )
    check(width % heads == 0, f'its width {width} is no multiple of its {heads} heads')
    shape = {'width': width, 'depth': sizes['depth'], 'heads': heads, 'hidden': sizes['hidden']}
    encoder = EncoderConfig(
        size=next((name for name, preset in PRESETS.items() if preset == shape), 'base'),
        **shape,
        patch_size=sizes['patch_size'],
        positions=sizes['positions'],
        layer_scale=(facts.layer_scale or 0.1) if sizes['scaled'] else 0.0,
        drop_path=0.0,
        norm_eps=EncoderConfig.norm_eps if facts.norm_eps is None else facts.norm_eps,
    )
    if head == 'pixels':
        kind, assumed_head = _segmenter(sizes, facts, encoder)
        assumed += assumed_head
    elif head == 'tokens':
        kind = {'architecture': 'beit_masked_image_model', 'vocabulary': sizes['vocabulary']}
    else:
        kind = {
            'architecture': 'beit_classifier',
            'num_classes': sizes['num_classes'] or facts.num_classes or 0,
            'pooling': head,
        }
    mean, std = mean or facts.mean, std or facts.std
    if not (mean and std):
        released = source.released
        kin = (
            'segmenters'
            if head == 'pixels'
            else 'weights of BEiT v2'
            if source.path.name.startswith('beitv2')
            else 'weights of BEiT'
        )
        usual = HALF if kin == 'weights of BEiT' else IMAGENET
        if released is None:
            numbers = 'mean and std 0.5' if usual is HALF else "ImageNet's mean and std"
            assumed.append(
                f'nothing tells how its pixels were normalised: {numbers} are assumed, as for the '
                f'released {kin}'
            )
        mean, std = mean or usual['mean'], std or usual['std']
    pictures = {
        'grid': sizes['grid'],
        'image_size': sizes['image_size'],
        'mean': list(mean),
        'std': list(std),
        'crop': facts.crop or (1.0 if head == 'pixels' else usual_crop(sizes['image_size'])),
    }
    return kind | dataclasses.asdict(encoder) | pictures, assumed


def _segmenter(sizes: dict, facts: Facts, encoder: EncoderConfig) -> tuple[dict, list[str]]:
    """(what the description of a segmenter has besides, what had to be assumed)."""
    given = {name: value for name, value in facts.head.items() if value is not None}
    uper = UperNetConfig(
        **given, channels=sizes['channels'], auxiliary_channels=sizes['auxiliary_channels']
    ).fitted(encoder)
    check(
        'pool_scales' in given or sizes['pools'] == len(uper.pool_scales),
        f'it pools at {sizes["pools"]} scales, and nothing tells which',
    )
    taps = f'nothing tells which blocks are tapped: {list(uper.taps)} from 0 are assumed, as in the official configs'
    return {
        'architecture': 'beit_segmenter',
        'num_classes': sizes['num_classes'],
        'head': dataclasses.asdict(uper),
        'reduce_zero_label': facts.reduce_zero_label,
    }, [] if 'taps' in given else [taps]


def _differences(dialect: str, head: str, architecture: dict, facts: Facts, tensors) -> list[str]:
    """What is not as the architecture has it, in the dialect's own names: tensors, shapes, numbers,
    buffers, and what is said beside."""
    grid, problems = tuple(architecture['grid']), []
    shapes = _shapes(architecture, dialect, head)
    for name in tensors.keys() | shapes.keys():
        array, shape = tensors.get(name), shapes.get(name)
        if array is None:
            problems.append(f'missing: {name} {list(shape)}')
        elif name.endswith(INDEX):
            tokens = 1 + grid[0] * grid[1]
            if array.shape != (tokens, tokens) or not np.array_equal(
                array, relative_position_index(grid)
            ):
                problems.append(
                    f'{name} is not the index of a grid of {grid[0]} x {grid[1]} patches'
                )
        elif shape is None:
            problems.append(f'unexpected: {name[:120]!a} {list(array.shape)}')
        elif array.shape != shape:
            turned = ', its transpose' if array.shape == shape[::-1] else ''
            problems.append(f'{name} is {list(array.shape)}, expected {list(shape)}{turned}')
        elif not _has_fractions(array):
            problems.append(f'{name} holds {array.dtype}, not real numbers')
        elif not np.isfinite(array).all():
            problems.append(
                f'{name} has {np.count_nonzero(~np.isfinite(array))} numbers that are NaN or '
                'infinite'
            )
    said = facts.claims
    for name, value in huggingface_settings(architecture).items() if said else ():
        if said[name] not in (value, [value] * 2):
            problems.append(f'config.json says {name} {shown(said[name])}, the tensors {value!r}')
    num_classes = architecture.get('num_classes', 0)
    if num_classes and len(facts.classes) not in (0, num_classes):
        problems.append(f'{len(facts.classes)} classes are named, the head has {num_classes}')
    return sorted(problems)


def _has_fractions(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16


def _shapes(architecture: dict, dialect: str, head: str) -> dict[str, tuple[int, ...]]:
    """The state dict that the architecture has in a dialect: shapes by name."""
    _, wanted = abstract(architecture)
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(wanted, sep='/').items():
        # takes no memory
        name, zeros = names.to_name(path, dialect, head), np.broadcast_to(np.int8(0), leaf.shape)
        shape = names.to_torch(path, zeros, architecture['patch_size']).shape
        whole, is_part = names.whole_qkv(name)
        shapes[whole] = (3 * shape[0], *shape[1:]) if is_part else shape
    return shapes


def huggingface_settings(architecture: dict) -> dict:
    """What config.json says of a model, under its names there, as far as the tensors show it."""
    tokens, pixels = predicts_tokens(architecture), segments(architecture)
    settings = {
        'hidden_size': architecture['width'],
        'num_hidden_layers': architecture['depth'],
        'num_attention_heads': architecture['heads'],
        'intermediate_size': architecture['hidden'],
        'hidden_act': 'gelu',
        'image_size': architecture['image_size'],
        'patch_size': architecture['patch_size'],
        'num_channels': 3,
        'use_absolute_position_embeddings': architecture['positions'] == 'absolute',
        'use_relative_position_bias': architecture['positions'] == 'layer_bias',
        'use_shared_relative_position_bias': architecture['positions'] == 'shared_bias',
        'use_mean_pooling': tokens or pixels or architecture['pooling'] == 'mean',
    }
    if pixels:
        head = head_config(architecture)
        settings |= {
            'pool_scales': list(head.pool_scales),
            'use_auxiliary_head': bool(head.auxiliary_channels),
        }
        settings |= (
            {
                'auxiliary_channels': head.auxiliary_channels,
                'auxiliary_num_convs': 1,
                'auxiliary_concat_input': False,
            }
            if head.auxiliary_channels
            else {}
        )
    return settings | ({'vocab_size': architecture['vocabulary']} if tokens else {})
