"""A published tokenizer out of its files: DALL-E's has one for each half."""

import dataclasses
from pathlib import Path
from typing import Any

from beit_jax.errors import RequestError, check
from beit_jax.weights.contents import find_weights
from beit_jax.weights.hub import local, repository
from beit_jax.weights.pytorch.tokenizers import from_customized, from_dalle, from_vqkd
from beit_jax.weights.pytorch.torch_reader import read_tensors
from beit_jax.weights.trees import check_finite


@dataclasses.dataclass(frozen=True)
class Published:
    """A tokenizer, or a half of one."""

    kind: str  # of models.tokenizers.KINDS
    config: Any  # its Config
    params: dict
    image_size: int = 0  # side of its pictures in pixels; 0: the file does not tell
    notes: tuple[str, ...] = ()  # what was left out


def read_tokenizer(paths: list[str]) -> Published:
    """The tokenizer of one or two files.

    Raises:
      RequestError: a file that is refused, or two that do not belong together.
    """
    found = None
    for path in paths:
        tensors = read_tensors(_file(path))
        try:
            new = _read(tensors)
        except RequestError as error:
            raise RequestError(f'{path}: {error}') from error
        check_finite(new.params, path)
        there = found.params if found else {}
        check(
            not there.keys() & new.params.keys(),
            f'{path} is a second {" and ".join(new.params)}: give one of each.',
        )
        found = join(found, new, path)
    return found


def _file(path: str) -> str | Path:
    """A path, or the file that a name on a hub is of."""
    if not repository(path):
        return path
    place = local(path)
    names = [file.name for file in place.iterdir()] if place.is_dir() else []
    return place / find_weights(names, path) if names else place


def _read(tensors) -> Published:
    if any(name.startswith('quantize.') for name in tensors):
        config, params, image_size, notes = from_vqkd(tensors)
        return Published('vqkd', config, params, image_size, tuple(notes))
    check(
        not any('patch_embed' in name for name in tensors),
        'it is an encoder, not a tokenizer: give it as config.init.',
    )
    if any(name.startswith('blocks.') for name in tensors):
        return Published('dvae', *from_dalle(tensors))
    return Published('customized', *from_customized(tensors))


def join(found: Published | None, new: Published, source: str) -> Published:
    """A tokenizer with the parts of `new` added, which are from `source`.

    DALL-E's two halves share all sizes but the decoder's input width.

    Raises:
      RequestError: they do not belong together.
    """
    if not found:
        return new
    decoder, other = (new, found) if 'decoder' in new.params else (found, new)
    same = ('groups', 'blocks', 'width', 'vocabulary')
    check(
        found.kind == new.kind == 'dvae'
        and all(getattr(decoder.config, name) == getattr(other.config, name) for name in same),
        f'{source} does not belong to the other half: it is {new.config}, the other one '
        f'{found.config}. Give both, or another --output.',
    )
    return dataclasses.replace(found, config=decoder.config, params=found.params | new.params)
