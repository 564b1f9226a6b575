"""A tokenizer on disk.

A directory with `tokenizer.safetensors` (arrays by path) and `tokenizer.json` (kind, picture size,
architecture, and how well it drew the pictures that it was trained on, where that is known).
"""

import dataclasses
import json
from pathlib import Path

from flax import traverse_util
import numpy as np

from beit_jax.errors import RequestError, check
from beit_jax.models.tokenizers import make_tokenizer
from beit_jax.weights.arrays import read_arrays, write_arrays
from beit_jax.weights.checkpoint import is_checkpoint
from beit_jax.weights.contents import TOKENIZER
from beit_jax.weights.hub import local, repository
from beit_jax.weights.trees import check_finite, digest
from beit_jax.whole_files import read_json

WEIGHTS, DESCRIPTION = TOKENIZER


def save_tokenizer(
    directory: Path,
    kind: str,
    config,
    image_size: int | tuple[int, int],
    params,
    psnr: float | None = None,
) -> None:
    """Writes the parameters of a tokenizer (nested dict) and the `Config` of its kind; psnr: in dB,
    of what it makes of pictures like those that it was trained on."""
    directory.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(params, sep='/')
    arrays = {path: np.asarray(value) for path, value in flat.items()}
    write_arrays(directory / WEIGHTS, arrays)
    architecture = dataclasses.asdict(config)
    description = {'kind': kind, 'image_size': image_size, 'architecture': architecture}
    if psnr is not None:
        description['psnr'] = psnr
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + '\n')


def load_tokenizer(
    path: str, precision: str = 'float32', *, encoder: bool = True, decoder: bool = False
):
    """(tokenizer, params) from a directory that `save_tokenizer` wrote, or a repository with its
    files (see `hub`).

    Args:
      precision: see `beit_jax.models.tokenizers.PRECISIONS`.
      encoder: refuse one without params['encoder'] (it can only draw).
      decoder: give params['decoder'] too, where there is one.

    Raises:
      RequestError: no such tokenizer, or arrays that do not fit its architecture.
    """
    directory = local(path) if repository(path) else Path(path)
    inside = directory / 'tokenizer'
    made = f': give {inside}' if (inside / DESCRIPTION).is_file() else ''
    remedy = (
        'Train one (python main.py --config=configs/quickstart/tokenizer.py --workdir=W writes '
        'W/tokenizer) or import one (python -m beit_jax.tools.import_tokenizer).'
    )
    for name in (WEIGHTS, DESCRIPTION):
        there = (directory / name).is_file()
        check(
            there or not (made or is_checkpoint(directory)),
            f'{path} is a checkpoint or work directory, not a tokenizer{made or f". {remedy}"}',
        )
        check(there, f'tokenizer {path}: there is no {name}. {remedy}')
    description = read_json(directory / DESCRIPTION, 'write the tokenizer again')
    kind, image_size, architecture = map(description.get, ('kind', 'image_size', 'architecture'))
    check(
        type(kind) is str
        and (type(image_size) is int or _is_pair(image_size))
        and type(architecture) is dict,
        f'{directory / DESCRIPTION} does not say kind, image_size and architecture: it is damaged, '
        'write the tokenizer again.',
    )
    flat, _ = read_arrays(directory / WEIGHTS)
    try:
        tokenizer = make_tokenizer(kind, architecture, image_size, precision)
    except RequestError as error:
        raise RequestError(f'{directory / DESCRIPTION}: {str(error)[:500]}') from error
    wrong, parts = list(mismatches(tokenizer, flat)), {name.partition('/')[0] for name in flat}
    check(
        not wrong,
        f'{directory / WEIGHTS} does not fit {DESCRIPTION}: '
        f'{", ".join(wrong[:5])}{" ..." if len(wrong) > 5 else ""}.',
    )
    check(
        'encoder' in parts or not encoder,
        f'tokenizer {path} has a decoder alone: import its encoder too.',
    )
    check_finite(flat, str(directory / WEIGHTS))
    params = traverse_util.unflatten_dict(flat, sep='/')
    wanted = ('encoder', 'decoder') if decoder else ('encoder',)
    return tokenizer, {part: params[part] for part in wanted if part in params}


def check_draws(tokenizer, params, path: str) -> None:
    """Raises RequestError where a tokenizer, loaded from `path` with its decoder, cannot draw."""
    why = '' if 'decoder' in params else 'has no decoder'
    if tokenizer.decodes != 'pixels':
        why = f'decodes {tokenizer.decodes}'
    add = ' Import its decoder into the same folder.' if tokenizer.kind == 'dvae' else ''
    check(not why, f'the tokenizer {path} {why}: it cannot draw pictures.{add}')


def known_psnr(path: str) -> float | None:
    """The PSNR in dB that `save_tokenizer` was given; None where it was given none."""
    psnr = read_json(local(path) / DESCRIPTION, 'write the tokenizer again').get('psnr')
    return psnr if isinstance(psnr, float) else None


def _is_pair(value) -> bool:
    return type(value) is list and len(value) == 2 and all(type(side) is int for side in value)


def mismatches(tokenizer, flat: dict[str, np.ndarray]) -> dict[str, tuple]:
    """What does not fit the architecture, sorted by path: (found, expected).

    Each is (shape, dtype), or None. One half alone is no mismatch.
    """
    parts = {name.partition('/')[0] for name in flat}
    abstract = {part: tree for part, tree in tokenizer.abstract().items() if part in parts}
    leaves = traverse_util.flatten_dict(abstract, sep='/')
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    found = {name: (array.shape, array.dtype) for name, array in flat.items()}
    pairs = {}
    for name in sorted(expected.keys() | found.keys()):
        pairs[name] = found.get(name), expected.get(name)
    return {name: (there, wanted) for name, (there, wanted) in pairs.items() if there != wanted}


def fingerprint(tokenizer, params) -> str:
    """sha256 of what decides a picture's ids: kind, architecture and the encoder's arrays."""
    architecture = dataclasses.asdict(tokenizer.config)
    if tokenizer.channels == 3:  # a tokenizer that does not say so is the same
        architecture.pop('channels', None)
    what = [tokenizer.kind, architecture]
    return digest(params['encoder'], json.dumps(what, sort_keys=True))
