"""Many examples that are stored side by side, read in one go: for stores where every read costs a
seek or a request."""

import collections
import concurrent.futures
import math
import threading

import numpy as np

from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.source import Example, Source, label_shape

READERS = 8  # chunks that are read at once
_LATE = 2  # steps: a pipeline asks for the examples of two batches before it has read the first


def chunked(
    source: Source, sampler: Sampler, rows: np.ndarray
) -> tuple['Source | ChunkedSource', 'Sampler | ReadAhead']:
    """(source, sampler) as `pipeline.train_batches` takes them for `rows`: chunks are read whole,
    and before they are needed, into memory.

    Memory holds the encoded images of two windows a lane, or of some four batches where that is
    more. Both are as they were where `sampler.chunk` is 0.
    """
    if not sampler.chunk:
        return source, sampler
    width, span = sampler.batch_size // sampler.lanes, sampler.window * sampler.chunk
    ahead = max(1, span // width - _LATE)  # steps: chunks are read so much earlier
    windows = math.ceil((ahead + _LATE) * width / span) + 1  # that are in use at a time
    lanes = len(np.unique(np.asarray(rows) // width))
    # intervals and windows cut chunks in two
    chunks = ChunkedSource(source, sampler.chunk, lanes * windows * (sampler.window + 1))
    return chunks, ReadAhead(sampler, chunks, ahead)


class ChunkedSource:
    """Another source's examples, read `chunk` at a time; serves many threads.

    The `keep` chunks that were used last stay in memory.
    """

    def __init__(self, source: Source, chunk: int, keep: int):
        self.source, self.chunk = source, chunk
        self.class_names, self.fingerprint = source.class_names, source.fingerprint
        self.label_shape = label_shape(source)
        self.name, self.label, self.read_many = source.name, source.label, source.read_many
        self._keep, self._kept, self._lock = keep, collections.OrderedDict(), threading.Lock()
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Example:
        chunk, place = divmod(index, self.chunk)
        example = self.begin(chunk).result()[place]
        if isinstance(example, OSError):
            raise example.with_traceback(None)
        return example

    def begin(self, chunk: int) -> concurrent.futures.Future:
        """What will be a chunk, as `read_many` gives it; has it read if it is not here."""
        with self._lock:
            if chunk not in self._kept:
                start = chunk * self.chunk
                end = min(start + self.chunk, len(self))
                self._kept[chunk] = self._readers.submit(self.source.read_many, start, end)
            self._kept.move_to_end(chunk)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
            return self._kept[chunk]


class ReadAhead:
    """A sampler that, asked for the examples of a step, has `chunks` begin to read those of that
    step and of the one `ahead` steps later."""

    def __init__(self, sampler: Sampler, chunks: ChunkedSource, ahead: int):
        self.sampler, self.seed = sampler, sampler.seed
        self.positions, self.views = sampler.positions, sampler.views
        self._chunks, self._ahead = chunks, ahead * sampler.batch_size

    def examples(self, positions: np.ndarray) -> np.ndarray:
        examples = self.sampler.examples(positions)
        for wanted in (examples, self.sampler.examples(positions + self._ahead)):
            for chunk in np.unique(wanted // self._chunks.chunk).tolist():
                self._chunks.begin(chunk)
        return examples
