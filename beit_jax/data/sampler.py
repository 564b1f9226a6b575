"""Which example stands at which position of the run: a pure function of (seed, step), so that a run can go on from any step."""
import functools

import numpy as np


@functools.lru_cache(maxsize=2)  # a batch straddles two epochs at most, unless there are fewer examples than a batch has rows
def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 .. num_examples - 1 (int64, read-only) in the order that (seed, epoch) gives: the same on every machine and release."""
    key = np.array([seed, epoch], np.int64).astype(np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_examples), kind='stable')
    order.setflags(write=False)
    return order


_SPACING = 256  # positions from one repetition of an example to the next at most


class Sampler:
    """Position `step * batch_size + row` of the run holds example `permutation(epoch)[k]` with `epoch, k = divmod(position, N)`.

    With `repetitions` R, a run of positions is said R times before the next: 256 of them, or fewer where a batch would not hold all R;
    an even number, so that two of the same example are never a pair that mixup mixes. `views` gives each time another number.

    Hosts ask for their rows of the global batch, so their batches, concatenated, are what one host alone would have made.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int, shuffle: bool = True, repeat_views: int = 0, repetitions: int = 1):
        """`repeat_views`: the epochs after which an example's views come again; 0: never. `repetitions`: of an example in one epoch."""
        self.num_examples, self.batch_size, self.seed, self.shuffle = num_examples, batch_size, seed, shuffle
        self.repeat_views, self.repetitions = repeat_views, repetitions

    def positions(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Positions (int64 [R]) of `rows` (int [R], each in [0, batch_size)) of the global batch of `step`."""
        return np.int64(step) * self.batch_size + np.asarray(rows, np.int64)

    def examples(self, positions: np.ndarray) -> np.ndarray:
        """Indices in [0, N) (int64 [R]) of the examples at `positions` (int64 [R])."""
        if self.repetitions > 1:
            spacing = max(2, min(_SPACING, self.batch_size // self.repetitions // 2 * 2))
            positions = positions // (spacing * self.repetitions) * spacing + positions % spacing
        epochs, indices = np.divmod(positions, self.num_examples)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                indices[here] = permutation(self.num_examples, self.seed, int(epoch))[indices[here]]
        return indices

    def views(self, positions: np.ndarray) -> np.ndarray:
        """Numbers (int64 [R]) that seed crop, flip and colours of the examples at `positions`: another one each time, or, where views
        repeat, example + N * (epoch modulo `repeat_views`)."""
        if not self.repeat_views:
            return positions
        return self.examples(positions) + self.num_examples * (positions // self.num_examples % self.repeat_views)
