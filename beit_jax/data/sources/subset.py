"""Some of the examples of another source: a few of each class, a held-out share, a spread."""

import hashlib

import numpy as np

from beit_jax.data.sampler import permutation
from beit_jax.data.sources.source import (
    Example,
    Source,
    check_label,
    label_shape,
    together,
)
from beit_jax.errors import RequestError, check

# not the run's seed: every run on the same data holds out the same examples
_HOLDOUT_KEY = 20210615


class Subset:
    """The examples `indices` (int [M]) of another source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, np.asarray(indices, np.int64)
        self.class_names, self.together = source.class_names, together(source)
        self.label_shape = label_shape(source)
        content = source.fingerprint.encode() + self.indices.tobytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> Example:
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> int | np.ndarray:
        return self.source.label(int(self.indices[index]))

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        indices, examples = self.indices[start:stop], []
        # each of neighbours in the other source
        for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
            if len(run):
                examples += self.source.read_many(int(run[0]), int(run[-1]) + 1)
        return examples


def some_of_each_class(source: Source, number: int, seed: int) -> np.ndarray:
    """Sorted indices of `number` examples of every class: the first of it in a random order."""
    check(
        bool(source.class_names),
        'config.data.labels_per_class needs labelled images: sort them into one folder a class.',
    )
    missing, kept = np.full(len(source.class_names), number), []
    for index in permutation(len(source), seed, 0):
        try:
            label = source.label(int(index))
        except OSError:  # unreadable: not among those that are kept
            continue
        check_label(source, int(index), label)
        if missing[label] > 0:
            missing[label] -= 1
            kept.append(index)
            if not missing.any():
                return np.sort(kept)
    names = ', '.join(np.array(source.class_names)[missing > 0][:3])
    raise RequestError(
        f'config.data.labels_per_class={number}, but there are fewer examples of {names}: lower it.'
    )


def spread(source: Source, limit: int) -> np.ndarray:
    """At most `limit` indices (int64), evenly spread; all where it is 0."""
    count = min(limit or len(source), len(source))
    return np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))


def holdout(num_examples: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (kept, held out): round(share * N) held out, at least one and not all, where
    `share` > 0 and N > 1."""
    held_out = min(max(1, round(share * num_examples)), num_examples - 1) if share else 0
    order = permutation(num_examples, _HOLDOUT_KEY, 0)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
