"""Tar shards as WebDataset lays them out (timm/imagenet-1k-wds, imagenet-22k-wds, ...), read in any
order without unpacking them."""

from collections.abc import Sequence
import itertools
import os
import re
import typing

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.folder import path_kind
from beit_jax.data.sources.splits import digest, facts_of, of_split
from beit_jax.data.sources.stored import StoredSource
from beit_jax.data.stores import storage
from beit_jax.data.stores.tar_file import refuse_packed
from beit_jax.data.stores.tars import TarSamples
from beit_jax.errors import check, of_storage

_IMAGES = tuple(ending[1:] for ending in ENDINGS)  # as a member's name ends
_INFO, _CLASSES = '_info.json', 'classes.txt'
_RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')


class WebDatasetSource(StoredSource):
    """The samples of one split of a folder of `.tar` shards, or of the shards that a pattern names:
    `gs://bucket/name-{0000..1023}.tar`.

    The shards of a split are those that `_info.json` lists; without it those whose name has the
    word (train, val, test), or all where no name has one. Image and label are those of
    `TarSamples`; without `label` it is `_info.json`'s `alt_label`, else the member `cls`. Classes
    are the lines of `classes.txt` beside the shards, else the numbers up to the highest label.
    `class_names`, `key` and `index` are as of `FolderSource`.

    Raises:
      RequestError: nothing there, an unknown split, a shard that is missing or has another number
        of samples than `_info.json` says. See `TarSamples`.
    """

    def __init__(
        self,
        path: str,
        split: str = 'train',
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        label: str = '',
        images: tuple[str, ...] = _IMAGES,
    ):
        check(
            bool(path),
            f'{key} is empty: set it to a folder of .tar files, or to name-{{0000..1023}}.tar.',
        )
        shards = _find(path, split, key)
        label = label or shards.label or 'cls'
        names, folder = list(shards.stamps), shards.folder
        of = {
            'list': 'tar samples',
            'path': folder if storage.is_remote(folder) else os.path.abspath(folder),
            'shards': digest(names, shards.stamps.values()),
            'members': f'{",".join(images)} {label}',
        }
        files = [storage.join(folder, name) for name in names]
        samples = TarSamples(files, images, label, key, index, of)
        super().__init__(samples)
        self.labels, counts = samples.labels, samples.counts.tolist()
        for file, count, expected in zip(files, counts, shards.counts or counts):
            check(
                count == expected,
                f'{key}: the shard {file!r} has {count} samples, but {_INFO} says {expected}: '
                'download it again.',
            )
        self.fingerprint = digest(names, (size for size, _ in shards.stamps.values()), counts)
        self.class_names = class_names
        if class_names is None:
            self.class_names = _class_names(folder, self.labels, key)


def expand(pattern: str) -> list[str]:
    """The names of `name-{00..12}.tar`; several ranges count like digits."""
    parts = _RANGE.split(pattern)  # text, first, last, text, ...
    ranges = [
        [f'{number:0{len(first)}}' for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3])
    ]
    texts = parts[::3]
    return [
        ''.join(itertools.chain.from_iterable(itertools.zip_longest(texts, chosen, fillvalue='')))
        for chosen in itertools.product(*ranges)
    ]


class _Shards(typing.NamedTuple):
    folder: str
    stamps: dict[str, tuple[int, str]]  # by name: size in bytes, and what changes with the file
    counts: Sequence[int]  # samples in each, where `_info.json` says
    label: str  # the member that the dataset says has it, or ''


def _find(path, split, key) -> _Shards:
    """The shards of a split, in order."""
    folder, pattern = (path, '') if not path.endswith('.tar') else os.path.split(path)
    try:
        check(
            path_kind(folder, key) == 'folder',
            f'{key}={path!r}: there is no folder {folder!r}: set it to a folder of .tar files, or '
            'to FOLDER/name-{0000..1023}.tar.',
        )
        there = storage.stamps(folder, ('.tar',))
        info = _info(folder, key)
    except OSError as error:
        raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
    if not there:
        refuse_packed(folder, f'{key}={path!r}')
    facts = info.get(split, {})
    if pattern:
        names = expand(pattern)
    elif info:
        check(bool(facts), f'split {split!r} is not in {key}={path!r}: it has {", ".join(info)}.')
        names = [name for each in facts['filenames'] for name in expand(each)]
    else:
        names = of_split(there, split, f'{key}={path!r}')
    missing = [name for name in names if name not in there]
    check(
        not missing,
        f'{key}={path!r}: {len(missing)} of {len(names)} shards are missing, the first is '
        f'{missing and missing[0]!r}: download them, or name those there are.',
    )
    lengths = dict(zip(facts.get('filenames', ()), facts.get('shard_lengths', ())))
    counts = [lengths[name] for name in names] if lengths.keys() >= set(names) else ()
    label = facts.get('alt_label', '')
    stamps = {name: there[name] for name in names}
    return _Shards(folder, stamps, counts, f'json.{label}' if label else '')


def _info(folder: str, key: str) -> dict:
    """What `_info.json` says of each split, by its name; {} without that file."""
    path = storage.join(folder, _INFO)
    if not storage.kind(path):
        return {}
    return facts_of(storage.read(path), _splits, f'{key}: {path!r}')


def _splits(info) -> dict:
    splits = info['splits']
    for facts in splits.values():
        names, lengths = facts['filenames'], facts['shard_lengths']
        texts = [*names, facts.get('alt_label', '')]
        if not (
            len(names) == len(lengths)
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(length, int) for length in lengths)
        ):
            raise ValueError
    return splits


def _class_names(folder: str, labels: np.ndarray, key: str) -> tuple[str, ...]:
    path, highest = storage.join(folder, _CLASSES), int(labels.max(initial=0))
    if not storage.kind(path):
        return tuple(map(str, range(highest + 1)))
    names = tuple(storage.read(path).decode(errors='replace').splitlines())
    check(
        highest < len(names),
        f'{key}: {path!r} names {len(names)} classes, but there is a label {highest}.',
    )
    return names
