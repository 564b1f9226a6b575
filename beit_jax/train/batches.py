"""The batches of a run, on its devices: pictures from the host, tokens from the tokenizer or the
cache."""

import collections
from collections.abc import Iterable, Iterator
import functools
import itertools
import math

import jax
import numpy as np

from beit_jax.data import pipeline
from beit_jax.data.sampler import Sampler
from beit_jax.data.segmentation import classes_in_words
from beit_jax.data.sources.chunks import chunked
from beit_jax.data.sources.source import Source, together
from beit_jax.data.sources.subset import Subset
from beit_jax.errors import StorageError, check
from beit_jax.models.memory import available, compiled_when_called
from beit_jax.settings.run import RunConfig
from beit_jax.train import step as steps
from beit_jax.train.sharding import gather, local_rows, put_batch, replicated
from beit_jax.train.workdir.token_cache import TokenCache

_NEVER = 2**62
_REMEMBERED = 32  # bad examples that are looked at again
_AHEAD = 4  # batches that are made, placed and taken at a time, besides those of data.prefetch


class Batches:
    """Makes the batches of a run: what `data.pipeline` reads, and what `Task.prepare` adds."""

    def __init__(self, config: RunConfig, task, mesh, source: Source, held_out: Source | None):
        """Reads nothing yet.

        Raises:
          RequestError: settings of the order that do not fit the data.
        """
        self._config, self._task, self._mesh = config, task, mesh
        self._source, self._held_out = source, held_out
        self._views = tuple(dict.fromkeys(task.views + task.prepare_views))
        data = config.data
        self._sampler = Sampler(
            len(source),
            config.batch_size,
            config.seed,
            repeat_views=data.repeat_views,
            repetitions=data.repeated_augmentation,
            chunk=data.chunk,
            window=data.window,
            lanes=data.lanes,
        )
        self._rows = local_rows(mesh, config.batch_size)
        self._bad = collections.deque(maxlen=_REMEMBERED)  # training examples
        self._named = set()  # bad examples, each of which comes once an epoch
        self.cached_from = _NEVER  # the step after which `prepare` is not needed
        values = sum(math.prod(view.shape) * view.dtype.itemsize for view in self._views)
        size = (_AHEAD + data.prefetch) * len(self._rows) * values
        check(
            size <= available(),
            f'config.batch_size={config.batch_size}, config.data.image_size={data.image_size} and '
            f'config.data.prefetch={data.prefetch} take {size / 1e9:,.1f} GB for batches, this '
            f'machine has {available() / 1e9:,.1f} GB: lower one of them.',
        )

    def check_source(self) -> list[str]:
        """Refuses training images of which too many cannot be read, and annotations without a
        class; lines on the classes that annotations have, and on reads that cost much."""
        data = self._config.data
        pipeline.check_source(self._source, data)
        sources = {'training': self._source, 'held-out': self._held_out} if data.label_maps else {}
        notes = [
            classes_in_words(source, data, which) for which, source in sources.items() if source
        ]
        count = together(self._source)
        if count > 1 and not data.chunk:
            notes.append(
                f'warning: for each picture {count} are read, which lie in one row group: '
                f'config.data.chunk={count} reads each once'
            )
        return notes

    @functools.cached_property
    def frozen(self):
        """The arrays of the task that are not learned, on every device."""
        place = functools.partial(jax.device_put, device=replicated(self._mesh))
        frozen = place(self._task.frozen)
        # what is in place already stays there
        return place(self._task.calibrate(frozen, functools.partial(self.on_host, frozen)))

    def train(self, start: int, cache: TokenCache | None) -> Iterator[dict]:
        """The batch of each step after `start`, ready for it; reads one ahead."""
        config, task = self._config, self._task
        source, sampler = chunked(self._source, self._sampler, self._rows)
        read = functools.partial(
            pipeline.train_batches, source, sampler, config=config.data, rows=self._rows
        )
        cached_from = cache.complete_from(config.batch_size) if cache else _NEVER
        self.cached_from = cached_from
        with_tokenizer = itertools.islice(
            read(views=self._views, start_step=start), max(0, cached_from - start)
        )
        without = read(views=task.views, start_step=max(start, cached_from))
        compute = compiled_when_called(
            steps.make_prepare(task, self._mesh, train=True), 'the tokenizer'
        )

        def placed():
            batches = itertools.chain(
                zip(with_tokenizer, itertools.repeat(False)), zip(without, itertools.repeat(True))
            )
            for batch, cached in itertools.islice(batches, config.total_steps - start):
                self._bad.extend(self._name_bad(batch, self._source))
                yield batch['view'], put_batch(self._mesh, batch, config.batch_size), cached

        for views, batch, cached in one_ahead(placed()):
            yield self._prepared(views, batch, compute, cache, cached)

    def _prepared(self, views, batch, compute, cache, cached: bool):
        """The batch that the step takes: with tokens, computed or, where they are `cached`, read.

        views: the numbers of this process's views.
        """
        names = {view.name for view in self._task.prepare_views}
        if not names:
            made = {}
        elif not cached:
            made = compute(self.frozen, {name: batch[name] for name in (*names, 'view', 'grey')})
            if cache:
                cache.put(*gather(self._mesh)((batch['view'], made['tokens'])))
        else:
            made = put_batch(self._mesh, {'tokens': cache.read(views)}, self._config.batch_size)
        names -= {view.name for view in self._task.views}
        return {name: value for name, value in batch.items() if name not in names} | made

    def reread(self, step: int) -> dict:
        """What this process read for `step`, as NumPy arrays."""
        data = self._config.data
        return next(
            pipeline.train_batches(
                self._source, self._sampler, self._views, data, self._rows, step - 1
            )
        )

    def held_out(self) -> Iterator[dict]:
        """One pass over the held-out images, prepared."""
        return self._evaluation(self._held_out, self.frozen)

    def some_held_out(self, limit: int) -> dict:
        """`limit` held-out images at most, spread over all, as NumPy arrays; without those that
        cannot be read."""
        subset, data = _spread(self._held_out, limit), self._config.data
        rows = np.arange(len(subset))
        (batch,) = pipeline.evaluate_batches(
            subset, len(rows), self._views, data, rows, data.evaluate_crop
        )
        return {view.name: batch[view.name][batch['valid'] > 0] for view in self._views}

    def held_out_pictures(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(index, image, label map) of this process's held-out pictures, of their own size."""
        source = self._held_out
        indices = range(jax.process_index(), len(source), jax.process_count())
        examples, bad = pipeline.segmentation_examples(source, self._config.data, indices), []
        for index, image, label_map in examples:
            if image is None:
                self._warn(source, index, 'it is left out')
                bad.append(index)
                self._check_there(source, bad)
            else:
                yield index, image, label_map

    def on_host(self, frozen, split: str, limit: int) -> Iterator[dict]:
        """Whole batches of `limit` images at most, spread over a split, as NumPy arrays: see
        `beit_jax.tasks.ReadSample`."""
        source = self._source if split == 'train' else self._held_out
        batches = self._evaluation(_spread(source, limit), frozen)
        return (jax.device_get(gather(self._mesh)(batch)) for batch in batches)

    def _evaluation(self, source: Source, frozen) -> Iterator[dict]:
        """The batches of one pass over `source` on the devices, prepared."""
        config = self._config
        batches = pipeline.evaluate_batches(
            source,
            config.batch_size,
            self._views,
            config.data,
            self._rows,
            config.data.evaluate_crop,
        )
        bad = []
        for batch in batches:
            bad += self._name_bad(batch, source)
            self._check_there(source, bad)
            placed = put_batch(self._mesh, steps.model_inputs(batch), config.batch_size)
            yield placed | self._prepare(frozen, placed)

    def away(self) -> bool:
        """Whether the training examples that could not be read lately are not damaged, but their
        storage was away."""
        return pipeline.are_away(self._source, self._bad, self._config.data)

    def _check_there(self, source: Source, bad: list[int]) -> None:
        """Figures of what is left of held-out images while their storage is away would be none."""
        data = self._config.data
        if len(bad) <= max(1, data.max_bad_share * len(source)):
            return
        if pipeline.are_away(source, bad[-_REMEMBERED:], data):
            raise StorageError(
                f'{len(bad)} of {len(source)} held-out examples cannot be read, '
                f'{source.name(bad[-1])} the last. {pipeline.AWAY}'
            )

    def _name_bad(self, batch: dict, source: Source) -> list[int]:
        """The examples that could not be read; a line for each that was not yet named."""
        bad = batch['substituted']
        for index, used in zip(batch['index'][bad], batch['used'][bad]):
            what = 'it is left out' if used < 0 else f'{source.name(used)} takes its place'
            self._warn(source, index, what)
        return batch['index'][bad].tolist()

    def _warn(self, source: Source, index: int, what: str) -> None:
        """A line, the first time."""
        if (name := source.name(index)) in self._named:
            return
        self._named.add(name)
        why = pipeline.flaw(source, index, self._config.data)
        # it may be readable by now, after a moment's fault of the storage
        reason = f' ({pipeline.words(why)})' if why else ''
        print(f'warning: {name} cannot be read; {what}{reason}', flush=True)

    @functools.cached_property  # compiled once a run, not once an evaluation
    def _prepare(self):
        return steps.make_prepare(self._task, self._mesh, train=False)


def _spread(source: Source, limit: int) -> Subset:
    """`limit` examples at most, spread over all."""
    count = min(limit, len(source))
    return Subset(source, np.linspace(0, len(source), count, endpoint=False).astype(int))


def one_ahead(items: Iterable) -> Iterator:
    """Each of `items` when the next has been fetched, so that host and device overlap."""
    for item, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield item
