"""Which files of a folder hold a model, by their names alone: on disk, or in a repository of a
hub."""

from collections.abc import Collection
from pathlib import PurePosixPath
import re

from beit_jax.errors import check

# the weights of a folder of PyTorch's, in order of preference
WHOLE = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
BESIDE = ('config.json', 'preprocessor_config.json')
TOKENIZER = ('tokenizer.safetensors', 'tokenizer.json')
_SHOWN = 8  # names in a message
_STEP = re.compile('checkpoints/(0|[1-9][0-9]{0,17})/state/.')


def find_weights(names: Collection[str], where: str, form: str = '') -> str:
    """The file of PyTorch weights, or the index of its shards, of the files in a folder.

    Args:
      where: what messages call the folder; form: how one of its files is given, ' as hf://...'.

    Raises:
      RequestError: there is none, or more than one.
    """
    for name in WHOLE:
        if name in names:
            return name
    found = sorted(name for name in names if _suffix(name) in SUFFIXES and '/' not in name)
    some = sorted(names)[:_SHOWN] + ['...'] * (len(names) > _SHOWN)
    check(
        bool(found),
        f'{where} holds neither a checkpoint nor a file of weights ({", ".join(SUFFIXES)}). It has '
        f'{", ".join(some) or "nothing"}.',
    )
    check(
        len(found) == 1,
        f'{where} holds several files of weights, {", ".join(found)}: give one of them{form}.',
    )
    return found[0]


def needed(names: Collection[str], where: str, form: str = '') -> list[str]:
    """The files of a folder and those below it that are read of what it holds: the newest
    checkpoint, a tokenizer, or weights of PyTorch with the JSON beside.

    Raises:
      RequestError: it holds none of these.
    """
    steps = [int(match[1]) for match in map(_STEP.match, names) if match]
    if steps:
        newest = f'checkpoints/{max(steps)}/'
        return [name for name in names if name.startswith(newest)]
    if any(name.startswith('state/') for name in names):
        return list(names)
    if set(TOKENIZER) <= set(names) and not set(WHOLE) & set(names):
        return list(TOKENIZER)
    weights = find_weights(names, where, form)
    files = {weights, *(name for name in BESIDE if name in names)}
    if weights.endswith('.index.json'):
        stem, _, suffix = weights.removesuffix('.index.json').rpartition('.')
        files |= {name for name in names if re.fullmatch(rf'{stem}-[^/]*\.{suffix}', name)}
    return sorted(files)


def taken_for_model(name: str) -> bool:
    """Whether a file would be part of what is read of its folder, or tells of it: what a model that
    is written there replaces."""
    top = '/' not in name
    known = name in (*BESIDE, *TOKENIZER, 'README.md') or name.endswith('.index.json')
    return (top and (known or _suffix(name) in SUFFIXES)) or name.startswith(
        ('checkpoints/', 'state/')
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix
