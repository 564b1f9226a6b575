"""A source whose examples are records that many files of a store hold."""

import numpy as np

from beit_jax.data.sources.source import Example, or_error
from beit_jax.data.stores.shards import Shards


class StoredSource:
    """One example for each record of `shards`. A subclass knows its classes, and what example a
    record is where that is not the image itself."""

    class_names: tuple[str, ...]
    fingerprint: str
    labels: np.ndarray  # int [N], or `label` is a subclass's own

    def __init__(self, shards: Shards):
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def name(self, index: int) -> str:
        return self._shards.name(index)

    def read(self, index: int) -> Example:
        return self._example(index, self._shards.read(index))

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [
            record if isinstance(record, OSError) else or_error(self._example, index, record)
            for index, record in enumerate(self._shards.read_many(start, stop), start)
        ]

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def _example(self, index: int, record) -> Example:
        return Example(record, self.label(index))
