"""The architecture of a file of weights: from its tensors, and from what is said beside them."""

from collections import Counter
import dataclasses
import math

import numpy as np

from beit_jax.data.config import PixelFormat, one_size
from beit_jax.errors import check
from beit_jax.models.encoder import MAX_PATCHES, POSITIONS, EncoderConfig
from beit_jax.models.heads import ClsHeadConfig
from beit_jax.models.layers import num_relative_positions
from beit_jax.models.presets import PRESETS
from beit_jax.models.upernet import UperNetConfig
from beit_jax.settings.mapping import from_mapping
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.facts import Facts, problem
from beit_jax.weights.pytorch.files import Source
from beit_jax.weights.pytorch.pictures import HALF, IMAGENET, usual_crop

HEAD_WIDTH = 64  # of every released model, where nothing shows the number of heads
MAX_DEPTH = 200
RELEASED_EARLY = 3  # blocks before the last: 9 of 12 and 21 of 24
NO_SQUARE = ', and no config.json beside it says which other one they are of'


def read_sizes(by_path: dict[str, np.ndarray], shape: tuple[int, int] | None = None) -> dict:
    """What the tensors, by our paths, show.

    Each size is the one that most of them have, so that a damaged one does not decide. `shape`:
    height and width of the pictures where that is said beside them; tensors tell a square only.

    Raises:
      RequestError: the tensors do not tell.
    """

    def vote(*places: tuple[str, int], of=lambda length: length) -> int:
        """The most frequent length of an axis of the tensors whose paths end so, else 0."""
        votes = Counter()
        for path, array in by_path.items():
            for suffix, axis in places:
                if path.endswith(suffix) and array.size and array.ndim > axis:
                    votes[of(array.shape[axis])] += 1
        del votes[0], votes[None]
        return max(votes, key=votes.get, default=0)

    patch = by_path.get('encoder/patch_embedding/kernel', np.empty(0))
    check(
        patch.ndim == 4 and patch.size > 0,
        'the patch embedding, a convolution, is missing: the size of the patches cannot be told',
    )
    check(
        patch.shape[2] == patch.shape[3],
        f'the patch embedding {list(patch.shape)} is not for square patches',
    )
    depth, positions = _depth(by_path), _positions(by_path)
    grid = None
    if shape and shape[0] != shape[1]:
        grid = [side // patch.shape[2] for side in shape]
        check(0 < grid[0] * grid[1] <= MAX_PATCHES, f'its pictures are of {shape} pixels')
    elif 'absolute' in positions:
        side = vote(('/position_embedding', 1), of=lambda tokens: _root(tokens - 1))
    else:
        side = vote(('bias/table', 0), of=_side_of_table)
    check(bool(grid) or side > 0, f'its positions are of no square grid of patches{NO_SQUARE}')
    grid = grid or [side, side]
    hidden = vote(('/fc1/bias', 0), ('/fc1/kernel', 0), ('/fc2/kernel', 1))
    check(hidden > 0, 'it has no MLP')
    pools = [int(path.split('/')[2]) for path in by_path if path.startswith('head/pools/')]
    # fmt: off
    return {
        'width': vote(('/norm1/scale', 0), ('patch_embedding/kernel', 0)),
        'depth': depth,
        'heads': vote(('bias/table', 1)),
        'hidden': hidden,
        'patch_size': patch.shape[2],
        'vocabulary': vote(('projection/bias', 0), ('projection/kernel', 0)),
        'num_classes': vote(('/classes/bias', 0), ('/classes/kernel', 0),
                            ('/classifier/bias', 0), ('/classifier/kernel', 0)),
        'channels': vote(('head/fuse/conv/kernel', 0), ('/outputs/0/conv/kernel', 0)),
        'auxiliary_channels': vote(('/auxiliary/layer/conv/kernel', 0),
                                   ('/auxiliary/layer/norm/scale', 0)),
        'pools': 1 + max(pools, default=-1),
        'positions': positions,
        'qkv_bias': any(path.endswith(('query/bias', 'value/bias')) for path in by_path),
        'cls_layers': len({p.split('/')[2] for p in by_path if p.startswith(names.OURS_CLS_BLOCK)}),
        'cls_shared': not any(path.startswith(f'{names.OURS_CLS}head/') for path in by_path),
        'scaled': any(path.endswith('/scale1') for path in by_path),
        'colours': patch.shape[1],
        'grid': grid,
        'image_size': one_size(*(length * patch.shape[2] for length in grid)),
    }
    # fmt: on


def _depth(by_path) -> int:
    blocks = {int(path.split('/')[2]) for path in by_path if path.startswith(names.OURS_BLOCK)}
    depth = max(blocks, default=-1) + 1
    last = f', the last one is block {depth - 1}' if depth else ''
    check(0 < depth <= min(MAX_DEPTH, 2 * len(blocks)), f'it has {len(blocks)} blocks{last}')
    return depth


def _positions(by_path) -> str:
    """Of which kind they are, of POSITIONS."""
    kinds = {
        'absolute': 'encoder/position_embedding' in by_path,
        'shared_bias': 'encoder/position_bias/table' in by_path,
        'layer_bias': any(path.endswith('attention/position_bias/table') for path in by_path),
    }
    found = [kind for kind, there in kinds.items() if there]
    positions = '+'.join(found)
    check(
        positions in POSITIONS,
        f'it has positions of {len(found)} kinds ({positions or "none"}): a BEiT here has one of '
        f'{", ".join(POSITIONS)}',
    )
    return positions


def _root(number: int) -> int | None:
    root = math.isqrt(max(0, number))
    return root if root * root == number else None


def _side_of_table(rows: int) -> int | None:
    """The side of the square grid whose bias table has so many rows."""
    side = ((_root(rows - 3) or 0) + 1) // 2
    return side if side and num_relative_positions((side, side)) == rows else None


def describe(
    source: Source, sizes: dict, facts: Facts, head: str, mean, std
) -> tuple[dict, list[str]]:
    """(the description that checkpoints carry, what had to be assumed for it).

    Args:
      source: the file or folder.
      sizes: of `read_sizes`.
      facts: what is said beside the tensors.
      head: of names.HEADS.
      mean, std: of its pixels in [0, 1], instead of what is said or assumed; or None.

    Raises:
      RequestError: sizes that do not fit one another.
    """
    heads, assumed = _heads(sizes, facts)
    shape = {name: sizes[name] for name in ('width', 'depth', 'hidden')} | {'heads': heads}
    encoder = EncoderConfig(
        size=next((name for name, preset in PRESETS.items() if preset == shape), 'base'),
        **shape,
        patch_size=sizes['patch_size'],
        channels=sizes['colours'],
        positions=sizes['positions'],
        qkv_bias=sizes['qkv_bias'],
        layer_scale=(facts.layer_scale or 0.1) if sizes['scaled'] else 0.0,
        drop_path=0.0,
        norm_eps=EncoderConfig.norm_eps if facts.norm_eps is None else facts.norm_eps,
    )
    if head == 'pixels':
        kind, said = _segmenter(sizes, facts, encoder)
        assumed += said
    elif head == 'tokens':
        kind = {'architecture': 'beit_masked_image_model', 'vocabulary': sizes['vocabulary']}
        if sizes['cls_layers']:
            kind['cls_head'], said = _cls_head(sizes, facts)
            assumed += said
    else:
        kind = {
            'architecture': 'beit_classifier',
            'num_classes': sizes['num_classes'] or facts.num_classes or 0,
            'pooling': head,
        }
        if kind['num_classes']:
            kind |= problem(kind | {'problem_type': facts.problem_type})
    mean, std, said = _normalisation(
        source, head, sizes['colours'], mean or facts.mean, std or facts.std
    )
    assumed += said
    pictures = {
        'grid': sizes['grid'],
        'image_size': sizes['image_size'],
        'mean': list(mean),
        'std': list(std),
        'crop': facts.crop or (1.0 if head == 'pixels' else usual_crop(sizes['image_size'])),
    }
    if facts.pixels:
        pictures['pixels'] = facts.pixels
    read = PixelFormat(**facts.pixels).num_channels if facts.pixels else encoder.channels
    for name, count in (('mean', len(mean)), ('std', len(std)), ('pixels', read)):
        check(
            count == encoder.channels,
            f'its {name} is of {count} channels, the patch embedding of {encoder.channels}',
        )
    return kind | dataclasses.asdict(encoder) | pictures, assumed


def _heads(sizes: dict, facts: Facts) -> tuple[int, list[str]]:
    """(number of attention heads, what had to be assumed)."""
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
    return heads, assumed


def _cls_head(sizes: dict, facts: Facts) -> tuple[dict, list[str]]:
    """(what the description of BEiT v2's pre-training has besides, what had to be assumed)."""
    early, assumed = facts.cls_early, []
    if early is None:
        early = max(1, sizes['depth'] - RELEASED_EARLY)
        assumed.append(
            f'nothing tells which patches its {sizes["cls_layers"]} layers cls_pt_* get: those of '
            f'block {early} are assumed, as in the released models'
        )
    settings = {'layers': sizes['cls_layers'], 'early': early, 'shared': sizes['cls_shared']}
    ClsHeadConfig(**settings).check_depth(sizes['depth'])
    return settings, assumed


def _segmenter(sizes: dict, facts: Facts, encoder: EncoderConfig) -> tuple[dict, list[str]]:
    """(what the description of a segmenter has besides, what had to be assumed)."""
    given = {name: value for name, value in facts.head.items() if value is not None}
    given['channels'], given['auxiliary_channels'] = sizes['channels'], sizes['auxiliary_channels']
    uper, assumed = from_mapping(UperNetConfig, given, 'head.').fitted(encoder), []
    check(
        'pool_scales' in given or sizes['pools'] == len(uper.pool_scales),
        f'it pools at {sizes["pools"]} scales, and nothing tells which',
    )
    if 'taps' not in given:
        assumed.append(
            f'nothing tells which blocks are tapped: {list(uper.taps)} from 0 are assumed, as in '
            'the official configs'
        )
    return {
        'architecture': 'beit_segmenter',
        'num_classes': sizes['num_classes'],
        'head': dataclasses.asdict(uper),
        'reduce_zero_label': facts.reduce_zero_label,
    }, assumed


def _normalisation(
    source: Source, head: str, channels: int, mean, std
) -> tuple[tuple, tuple, list[str]]:
    """(mean, std, what had to be assumed)."""
    if mean and std:
        return mean, std, []
    if channels != 3:
        assumed = 'nothing tells how its pixels were normalised: mean and std 0.5 are assumed'
        return mean or (0.5,) * channels, std or (0.5,) * channels, [assumed]
    if head == 'pixels':
        kin, usual = 'segmenters', IMAGENET
    elif source.name.startswith('beitv2'):
        kin, usual = 'weights of BEiT v2', IMAGENET
    elif source.released and source.released.vanilla:
        kin, usual = '', IMAGENET
    else:
        kin, usual = 'weights of BEiT', HALF
    assumed = []
    if source.released is None:
        numbers = 'mean and std 0.5' if usual is HALF else "ImageNet's mean and std"
        assumed.append(
            f'nothing tells how its pixels were normalised: {numbers} are assumed, as for the '
            f'released {kin}'
        )
    return mean or usual['mean'], std or usual['std'], assumed
