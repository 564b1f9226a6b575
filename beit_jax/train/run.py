"""What a run has: its data, task and mesh, checked before the first step; where it starts; its
batches; its evaluation; what it writes."""

from collections.abc import Callable, Iterable, Iterator
import functools
import itertools
import json
from pathlib import Path
import time

import jax
import numpy as np

import beit_jax
from beit_jax import whole_files
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.chunks import chunked
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset
from beit_jax.errors import RequestError, check
from beit_jax.runtime import keep_memory
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import make_task
from beit_jax.train import optimizer as optimizers
from beit_jax.train import step as steps
from beit_jax.train.changes import refuse_changes, settings_of
from beit_jax.train.checkpoint import Checkpoints
from beit_jax.train.metrics import MetricsWriter, add_sums, class_name, writing
from beit_jax.train.sharding import (
    check_batch,
    local_rows,
    make_mesh,
    put_batch,
    replicated,
    state_shardings,
)
from beit_jax.train.token_cache import TokenCache
from beit_jax.weights.load import load_weights
from beit_jax.weights.trees import check_params

HELD_OUT = 'set config.data.evaluate_path (folder), evaluate_split (tfds) or holdout'
_NEVER = 2**62


def _one_ahead(items: Iterable) -> Iterator:
    """`items`, each when the next is there: what the device has begun goes on while the host takes
    the one before."""
    for item, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield item


class Run:
    """What a run has before the first step: checked data, task, mesh; everything that can be
    refused is refused here."""

    def __init__(self, config: RunConfig, workdir: Path):
        self.workdir, self.notes = workdir, []  # lines for the user
        keep_memory()
        self.mesh = make_mesh(config.mesh)
        check_batch(self.mesh, config.batch_size, config.accumulate_steps)
        self.source, self.held_out = (
            open_source(config.data, 'train'),
            open_source(config.data, 'evaluate'),
        )
        self.config = config = config.resolve(len(self.source), self.source.class_names)
        self.task = make_task(config)
        data = config.data
        self.sampler = Sampler(
            len(self.source),
            config.batch_size,
            config.seed,
            repeat_views=data.repeat_views,
            repetitions=data.repeated_augmentation,
            chunk=data.chunk,
            window=data.window,
            lanes=data.lanes,
        )
        self.rows = local_rows(self.mesh, config.batch_size)
        # here and not above: TensorFlow is loaded only by those who read data
        from beit_jax.data import pipeline

        self.pipeline = pipeline
        pipeline.check_source(self.source, config.data)
        check(
            self.held_out is not None or not self.task.needs_held_out,
            f'config.task={config.task} needs held-out images: {HELD_OUT}.',
        )

    def summary(self) -> str:
        state = jax.tree.leaves(steps.abstract_params(self.task))
        return (
            f'{self.config.task}: {sum(leaf.size for leaf in state):,} parameters; '
            f'{len(self.source):,} images; batch {self.config.batch_size}; '
            f'{self.config.total_steps:,} steps; mesh '
            + ' x '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items())
            + f' of {jax.devices()[0].device_kind}'
        )

    def description(self) -> dict:
        return {
            'task': self.config.task,
            'architecture': self.task.describe(),
            'classes': self.source.class_names,
            'data': self.fingerprint,
            'config': settings_of(self.config),
            'versions': {'beit_jax': beit_jax.__version__, 'jax': jax.__version__},
        }

    # once a run, not once a save: a tokenizer may have hundreds of megabytes
    @functools.cached_property
    def fingerprint(self) -> dict:
        """What decides, besides the config, what a step sees: the examples, and the arrays that are
        not learned (a tokenizer)."""
        return {
            'examples': len(self.source),
            'manifest': self.source.fingerprint,
            'seed': self.config.seed,
            'batch_size': self.config.batch_size,
            'tokenizer': self.task.fingerprint(),
        }

    @functools.cached_property
    def frozen(self):
        """The arrays of the task that are not learned, on every device."""
        place = functools.partial(jax.device_put, device=replicated(self.mesh))
        frozen = place(self.task.frozen)
        # what is in place already stays there
        return place(self.task.calibrate(frozen, functools.partial(self.host_batches, frozen)))

    def restore_or_init(self, checkpoints: Checkpoints, optimizer):
        """The state to start from: of the newest checkpoint that is whole, or fresh."""
        config = self.config
        abstract = steps.abstract_state(self.task, optimizer)
        shardings = state_shardings(self.mesh, abstract)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        state, lines = checkpoints.restore_newest(placed, self._check_data)
        self.notes += lines
        if state is not None:
            return state
        if jax.process_index() == 0:
            self._write_parameter_table()
        params, _, notes = (
            self.load_params(config.init)
            if config.init
            else (steps.initial_params(self.task, config.seed, shardings['params']), (), [])
        )
        self.notes += notes
        return steps.initial_state(self.task, optimizer, self.mesh, params)

    def _check_data(self, description: dict) -> None:
        differing = whole_files.differences(description['data'], self.fingerprint)
        self.notes += refuse_changes(
            self.config,
            differing,
            f'{self.workdir} holds a run on other data',
            'give the data and the tokenizer of that run',
        )

    def load_params(self, path: str):
        """(the parameters in a checkpoint or a file as this run's model takes them, prefixes of
        paths that start fresh, lines for the user)."""
        place = functools.partial(state_shardings, self.mesh)
        params, description = load_weights(path, place)
        params, fresh, notes = self.task.adapt(params, description, self.source.class_names, path)
        abstract = steps.abstract_params(self.task)
        if fresh:
            params = steps.merge(
                params, steps.initial_params(self.task, self.config.seed, place(abstract), fresh)
            )
        check_params(abstract, params, path)
        return params, fresh, [*description.get('notes', ()), *notes]

    def open_cache(self, start: int, log: MetricsWriter) -> None:
        """Where tokens are cached: checks what is there, and from which step on it suffices."""
        self.cache, self.cached_from = None, _NEVER
        tokenizer, data = self.task.token_cache, self.config.data
        if tokenizer is None:
            return
        directory = Path(tokenizer.cache_path or self.workdir / 'tokens')
        (view,), examples, batch_size = (
            self.task.prepare_views,
            len(self.source),
            self.config.batch_size,
        )
        # as JSON gives it back
        fingerprint = json.loads(
            json.dumps(
                {
                    name: self.fingerprint[name]
                    for name in ('examples', 'manifest', 'seed', 'tokenizer')
                }
                | {
                    'views': tokenizer.cache_views,
                    'size': view.size,
                    'precision': tokenizer.precision,
                    'crop_scale': data.crop_scale,
                    'crop_ratio': data.crop_ratio,
                    'flip': data.flip,
                    'color_jitter': data.color_jitter,
                }
            )
        )
        tokens = self.config.grid[0] * self.config.grid[1]
        self.cache = TokenCache(
            directory, fingerprint, examples, tokenizer.cache_views, tokens, start * batch_size
        )
        self.cached_from = -(-self.cache.complete_at // batch_size)
        log.say(
            f'tokens are computed up to step {self.cached_from} and from then on read from '
            f'{directory}'
        )

    def save(self, checkpoints: Checkpoints, state, step: int, must: bool) -> None:
        if self.cache:
            self.cache.flush(step * self.config.batch_size)
        checkpoints.save(state, step, self.description(), must)

    def _write_parameter_table(self):
        table = optimizers.parameter_table(self.task.abstract, self.config.optimizer.layer_decay)
        with writing(self.workdir):
            (self.workdir / 'parameters.txt').write_text(table)

    def train_batches(self, start: int):
        """The batches of the run on the devices, read one ahead of the step and ready for it: with
        tokens, computed or from the cache."""
        prepare = self._make_preparation()
        source, sampler = chunked(self.source, self.sampler, self.rows)
        batches = functools.partial(
            self.pipeline.train_batches, source, sampler, config=self.config.data, rows=self.rows
        )
        with_tokenizer = itertools.islice(
            batches(views=self.task.views + self.task.prepare_views, start_step=start),
            max(0, self.cached_from - start),
        )
        without = batches(views=self.task.views, start_step=max(start, self.cached_from))

        def placed():
            for batch in itertools.islice(
                itertools.chain(with_tokenizer, without), self.config.total_steps - start
            ):
                self._name_bad(batch, self.source)
                yield batch['view'], put_batch(self.mesh, batch, self.config.batch_size)

        for views, batch in _one_ahead(placed()):
            yield prepare(views, batch)

    def _make_preparation(self):
        """(numbers of this process's views, batch) -> the batch that the step takes: with tokens,
        computed or from the cache."""
        names = {view.name for view in self.task.prepare_views}
        compute = steps.make_prepare(self.task, self.mesh, train=True)

        def prepare(views, batch):
            if names <= batch.keys():
                made = compute(self.frozen, {name: batch[name] for name in (*names, 'view')})
                if self.cache:
                    self.cache.put(*self._whole((batch['view'], made['tokens'])))
            else:
                made = put_batch(
                    self.mesh, {'tokens': self.cache.read(views)}, self.config.batch_size
                )
            return {name: value for name, value in batch.items() if name not in names} | made

        return prepare

    @staticmethod
    def _name_bad(batch, source):
        for index, used in zip(
            batch['index'][batch['substituted']], batch['used'][batch['substituted']]
        ):
            what = 'it is left out' if used < 0 else f'{source.name(used)} takes its place'
            print(f'warning: {source.name(index)} cannot be read; {what}', flush=True)

    def evaluation_batches(self, source: Source, frozen):
        """The batches of one pass over `source` on the devices, prepared."""
        views = self.task.views + self.task.prepare_views
        batches = self.pipeline.evaluate_batches(
            source,
            self.config.batch_size,
            views,
            self.config.data,
            self.rows,
            self.config.data.evaluate_crop,
        )
        for batch in batches:
            self._name_bad(batch, source)
            placed = put_batch(self.mesh, steps.model_inputs(batch), self.config.batch_size)
            yield placed | self._prepare(frozen, placed)

    @functools.cached_property  # compiled once a run, not once an evaluation
    def _prepare(self):
        return steps.make_prepare(self.task, self.mesh, train=False)

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after `step`."""
        every = self.config.evaluate_every
        return self.held_out is not None and (
            step == self.config.total_steps or (every > 0 and step % every == 0)
        )

    def make_evaluation(
        self,
        write_rows: Callable[[dict], None] | None = None,
        interrupted: Callable[[int], bool] = lambda batch: False,
    ):
        """params -> metrics over all held-out images, each counted once, under keys eval/...; None
        where `interrupted(batch)` says so.

        With `write_rows`, which gets the rows of each batch, the images per second are among them.
        """
        if self.task.label_windows:
            return self._make_picture_evaluation(write_rows is not None, interrupted)
        summarize = jax.jit(self.task.summarize)
        step = steps.make_evaluate_step(
            self.task, self.mesh, state_shardings(self.mesh, steps.abstract_params(self.task))
        )

        def evaluate(params):
            def results():
                for number, batch in enumerate(self.evaluation_batches(self.held_out, self.frozen)):
                    if interrupted(number):
                        yield None
                        return
                    yield step(params, batch, number)

            total, counted, began = None, len(self.held_out), time.perf_counter()
            for number, result in enumerate(_one_ahead(results())):
                if result is None:
                    return None
                sums, rows = jax.device_get(result)
                total = add_sums(total, sums)
                if write_rows:
                    write_rows(rows)
                # the first batch waits for the compiler
                if number == 0 and len(self.held_out) > self.config.batch_size:
                    counted, began = (
                        len(self.held_out) - self.config.batch_size,
                        time.perf_counter(),
                    )
            seconds, metrics = time.perf_counter() - began, jax.device_get(summarize(total))
            if write_rows:
                metrics['images_per_second'] = counted / seconds
            return {f'eval/{name}': value for name, value in metrics.items()}

        return evaluate

    def _make_picture_evaluation(self, timed: bool, interrupted: Callable[[int], bool]):
        """The same for a task that labels the pixels of whole pictures."""
        # which other tasks have no need of
        from beit_jax.train.segmentation import PictureLabeller, evaluate_pictures

        config, source = self.config, self.held_out
        names = [class_name(source.class_names, number) for number in range(config.num_classes)]
        labeller = PictureLabeller(
            self.task.label_windows,
            config.data.image_size,
            config.inference,
            self.mesh.local_devices,
            config.data.mean,
        )

        def examples():
            indices = range(jax.process_index(), len(source), jax.process_count())
            for index, image, label_map in self.pipeline.segmentation_examples(
                source, config.data, indices
            ):
                if image is None:
                    print(
                        f'warning: {source.name(index)} cannot be read; it is left out', flush=True
                    )
                else:
                    yield index, image, label_map

        def evaluate(params):
            here = jax.tree.map(lambda leaf: leaf.addressable_data(0), self._whole(params))
            metrics = evaluate_pictures(
                labeller, here, examples(), names, self.workdir, config.pictures, interrupted
            )
            return metrics and {
                f'eval/{name}': value
                for name, value in metrics.items()
                if timed or name != 'images_per_second'
            }

        return evaluate

    def host_batches(self, frozen, split: str, limit: int):
        """Whole batches of `limit` images at most, spread over a split: see
        `beit_jax.tasks.Batches`."""
        source = self.source if split == 'train' else self.held_out
        kept = Subset(
            source, np.linspace(0, len(source), min(limit, len(source)), endpoint=False).astype(int)
        )
        return (
            jax.device_get(self._whole(batch)) for batch in self.evaluation_batches(kept, frozen)
        )

    @functools.cached_property
    def _whole(self):
        """jitted: any tree of arrays -> the same, whole on every device."""
        return jax.jit(lambda tree: tree, out_shardings=replicated(self.mesh))

    def finish(self, params, metrics: dict | None, evaluate) -> bool:
        """Has the task write what else it owes; False where it was interrupted. metrics: of the
        last evaluation, None where the run went on after it."""
        metrics = metrics or (evaluate(params) if self.held_out else {})
        if metrics is not None:
            self.task.finish(
                jax.device_get(self._whole(params)),
                self.workdir,
                functools.partial(self.host_batches, self.frozen),
                metrics,
            )
        return metrics is not None

    def write(self, log: MetricsWriter, clock, step: int, metrics) -> None:
        """Logs a training step and refuses to go on where it went wrong."""
        metrics = jax.device_get(metrics)  # waits until the step is done
        rate = clock.lap(step)
        if clock.laps == 1:
            log.say(f'a step takes {self.config.batch_size / rate:.3f} s')
        log.write(step, metrics | {'images_per_second': round(rate, 1)})
        self._check_skipped(log, step, int(metrics['skipped_in_a_row']))
        seen = step * self.config.batch_size
        share = metrics['bad_records'] / seen
        # one bad record among the first few is not yet a bad data set
        check(
            share <= self.config.data.max_bad_share or metrics['bad_records'] <= 1,
            f'{int(metrics["bad_records"])} of {seen} examples could not be read ({share:.1%}), '
            f'more than config.data.max_bad_share ({self.config.data.max_bad_share:.1%}): repair '
            f'{self.config.data.path or self.config.data.name} or raise it.',
        )

    def _check_skipped(self, log: MetricsWriter, step: int, in_a_row: int) -> None:
        """Says that steps were skipped, and refuses to go on after too many; their first batch is
        then in the work directory."""
        if not in_a_row:
            return
        first = step - in_a_row + 1
        log.say(
            f'warning: loss or gradient of step {step} is not finite: it is skipped, as are all '
            f'since step {first}'
        )
        if in_a_row < self.config.max_skipped_steps:
            return
        batch = next(
            self.pipeline.train_batches(
                self.source,
                self.sampler,
                self.task.views + self.task.prepare_views,
                self.config.data,
                self.rows,
                first - 1,
            )
        )
        path = self.workdir / f'skipped_step_{first}_process_{jax.process_index()}.npz'
        np.savez(path, **batch)
        raise RequestError(
            f'loss or gradient of {in_a_row} steps in a row, from step {first} on, were not finite. '
            f'None of them changed the parameters; the batch of step {first} is in {path}. Lower '
            'config.optimizer.lr, or set config.optimizer.clip_norm.'
        )
