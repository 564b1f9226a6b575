"""Which example stands at which position of the run: a pure function of (seed, step), so that a run
can go on from any step."""

from collections.abc import Sequence
import functools

import numpy as np

from beit_jax.errors import check

_SPACING = 256  # positions from one repetition of an example to the next at most


# a batch straddles two epochs at most, unless there are fewer examples than a batch has rows
@functools.lru_cache(maxsize=2)
def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 .. num_examples - 1 (int64, read-only) in the order that (seed, epoch) gives:
    the same on every machine and release."""
    return _order(num_examples, seed, epoch)


@functools.lru_cache(maxsize=64)
def _within(length: int, seed: int, epoch: int, lane: int, window: int) -> np.ndarray:
    """The order of the places of a window, as `permutation`; random bits that no permutation of
    that epoch takes."""
    return _order(length, seed, epoch, (0, lane, window, 1))


def random_bits(
    count: int, seed: int, number: int, counter: Sequence[int] = (0, 0, 0, 0)
) -> np.ndarray:
    """uint64 [count] that (seed, number, counter) give: the same on every machine and release.

    The last of `counter` says what for: 0 orders, substitutes and RandAugment (which has seeds of
    its own), 1 windows, 2 crops and flips.
    """
    key = np.array([seed, number], np.int64).astype(np.uint64)
    return np.random.Philox(key=key, counter=np.array(counter, np.uint64)).random_raw(count)


def _order(number, seed, epoch, counter=(0, 0, 0, 0)):
    order = np.argsort(random_bits(number, seed, epoch, counter), kind='stable')
    order.setflags(write=False)
    return order


class Sampler:
    """Position `step * batch_size + row` of the run holds example `permutation(epoch)[k]` with
    `epoch, k = divmod(position, N)`.

    With `repetitions` R, a run of positions is said R times before the next: 256 of them, or fewer
    where a batch would not hold all R; an even number, so that two of the same example are never a
    pair that mixup mixes. `views` gives each time another number.

    With `chunk` C the order has two levels, so that C examples that are stored side by side can be
    read in one go. An epoch permutes the chunks; one after the other they are a sequence, of which
    each of L `lanes` takes an equal interval (what does not divide is left out, other examples each
    time), and within it shuffles windows of `window` * C places. Rows [l * B / L, (l + 1) * B / L)
    of each batch are lane l's. An epoch is N // L * L positions.

    Hosts ask for their rows of the global batch, so their batches, concatenated, are what one host
    alone would have made.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        repeat_views: int = 0,
        repetitions: int = 1,
        chunk: int = 0,
        window: int = 16,
        lanes: int = 1,
    ):
        """`repeat_views`: the epochs after which an example's views come again; 0: never.
        `repetitions`: of an example in one epoch. Both are for `chunk` 0, as are orders that are
        not shuffled.

        Raises:
          RequestError: lanes that do not divide the batch, or are more than there are examples.
        """
        check(
            batch_size % lanes == 0,
            f'batch_size {batch_size} is not a multiple of config.data.lanes={lanes}.',
        )
        check(
            lanes <= num_examples,
            f'config.data.lanes={lanes}, but there are {num_examples} examples: lower it.',
        )
        self.num_examples, self.batch_size = num_examples, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.repeat_views, self.repetitions = repeat_views, repetitions
        self.chunk, self.window, self.lanes = chunk, window, lanes

    def positions(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Positions (int64 [R]) of some rows of the global batch of `step`.

        Args:
          rows: int [R], each in [0, batch_size).
        """
        return np.int64(step) * self.batch_size + np.asarray(rows, np.int64)

    def examples(self, positions: np.ndarray) -> np.ndarray:
        """Indices in [0, N) (int64 [R]) of the examples at `positions` (int64 [R])."""
        if self.chunk:
            return self._two_levels(positions)
        if self.repetitions > 1:
            spacing = max(2, min(_SPACING, self.batch_size // self.repetitions // 2 * 2))
            positions = positions // (spacing * self.repetitions) * spacing + positions % spacing
        epochs, indices = np.divmod(positions, self.num_examples)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                indices[here] = permutation(self.num_examples, self.seed, int(epoch))[indices[here]]
        return indices

    def _two_levels(self, positions):
        width = self.batch_size // self.lanes  # rows of a lane
        length, span = self.num_examples // self.lanes, self.window * self.chunk
        steps, rows = np.divmod(positions, self.batch_size)
        lanes, rows = np.divmod(rows, width)
        epochs, places = np.divmod(steps * width + rows, length)
        windows, within = np.divmod(places, span)
        count = -(-length // span)  # windows of a lane
        groups = (epochs * self.lanes + lanes) * count + windows
        for group in np.unique(groups).tolist():  # a batch has few
            here, window = groups == group, group % count
            epoch, lane = divmod(group // count, self.lanes)
            begin = window * span
            order = _within(min(span, length - begin), self.seed, epoch, lane, window)
            places[here] = lane * length + begin + order[within[here]]
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._of_sequence(int(epoch), places[here])
        return indices

    def _of_sequence(self, epoch, places):
        """The examples at `places` of the sequence of permuted chunks; the last chunk of all, which
        may be short, is anywhere in it."""
        count = -(-self.num_examples // self.chunk)
        order = permutation(count, self.seed, epoch)
        lacking = count * self.chunk - self.num_examples
        end = (int(np.argmax(order == count - 1)) + 1) * self.chunk - lacking  # of the short chunk
        chunks, within = np.divmod(places + lacking * (places >= end), self.chunk)
        return order[chunks] * self.chunk + within

    def views(self, positions: np.ndarray) -> np.ndarray:
        """Numbers (int64 [R]) that seed crop, flip and colours of the examples at `positions`.

        Another one each time, or, where views repeat, example + N * (epoch modulo `repeat_views`).
        """
        if not self.repeat_views:
            return positions
        epochs = positions // self.num_examples
        return self.examples(positions) + self.num_examples * (epochs % self.repeat_views)
