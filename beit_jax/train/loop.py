"""The one loop: a run is a pure function of (config, seed, step), so it can stop after any step and go on as if nothing had happened."""
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import itertools
import json
from pathlib import Path
import sys
import time

import jax
import numpy as np

import beit_jax
from beit_jax import records
from beit_jax.config import RunConfig, check
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources import Source, Subset, open_source
from beit_jax.errors import RequestError
from beit_jax.tasks import make_task
from beit_jax.train import optimizer as optimizers
from beit_jax.train import step as steps
from beit_jax.train.checkpoint import Checkpoints
from beit_jax.train.distributed import Stop
from beit_jax.train.metrics import MetricsWriter, PredictionsWriter, add_sums, writing
from beit_jax.train.sharding import check_batch, local_rows, make_mesh, put_batch, replicated, state_shardings
from beit_jax.train.token_cache import TokenCache
from beit_jax.weights.load import load_weights
from beit_jax.weights.trees import check_params

STOPPED = 75  # exit status: stopped by a signal after saving (EX_TEMPFAIL: try again)
# What may change when a run is resumed, for it changes no result.
FREE_SETTINGS = ('log_every', 'save_every', 'keep_checkpoints', 'max_skipped_steps', 'mesh', 'profile', 'data.path', 'data.evaluate_path',
                 'data.workers', 'data.prefetch', 'tokenizer.path', 'tokenizer.cache_views', 'tokenizer.cache_path')

HELD_OUT = 'set config.data.evaluate_path (folder), evaluate_split (tfds) or holdout'
_NEVER = 2 ** 62


def train(config: RunConfig, workdir: Path) -> int:
    """Trains from the newest checkpoint of `workdir`, or from the start, to the end. Returns the exit status: 0, or 75 after a signal.

    Raises:
      RequestError: the config, the data, the work directory or a checkpoint do not fit one another.
    """
    stop = Stop()
    stop.listen()
    run = _Run(config, workdir)
    _claim_workdir(run.config, workdir)
    with contextlib.closing(Checkpoints(workdir, run.config.keep_checkpoints)) as checkpoints:  # however it ends, a save under way is finished
        return _train(run, checkpoints, stop)


def _train(run, checkpoints: Checkpoints, stop: Stop) -> int:
    config, workdir, mesh, task = run.config, run.workdir, run.mesh, run.task
    schedule = optimizers.learning_rate(config.optimizer, config.total_steps, len(run.source) / config.batch_size)
    optimizer = optimizers.make_optimizer(config.optimizer, schedule, steps.abstract_params(task))
    state, notes = run.restore_or_init(checkpoints, optimizer)
    start = int(state['step'])
    log = MetricsWriter(workdir, start, config.total_steps, active=jax.process_index() == 0)
    log.say('\n'.join([run.summary() + (f'; resumed after step {start}' if start else ''), *notes]))
    run.open_cache(start, log)
    evaluate = run.make_evaluation()
    train_step = steps.make_train_step(task, optimizer, schedule, mesh, config.total_steps)

    clock = pending = evaluated = None
    for number, batch in zip(range(start + 1, config.total_steps + 1), run.train_batches(start)):
        if clock is None:
            train_step, note = _compile(train_step, state, batch)
            log.say(note)
            clock = _Clock(start, config.batch_size)
        _profile(config, number, workdir)
        state, metrics = train_step(state, batch)
        if pending:  # by now the step before is done: reading its metrics does not keep the device waiting
            pending = run.write(log, clock, *pending)
        log.advance()
        last, stopping = number == config.total_steps, stop.asked(number)
        evaluating = run.held_out is not None and (last or (config.evaluate_every and number % config.evaluate_every == 0))
        saving = last or stopping or number % config.save_every == 0
        if last or number % config.log_every == 0:
            pending = (number, metrics)
        if not (evaluating or saving):
            continue
        if pending:  # before what is written below
            pending = run.write(log, clock, *pending)
        if evaluating:
            evaluated = evaluate(steps.averaged_params(state))
            log.write(number, evaluated)
        if saving:
            run.flush_cache(number)
            checkpoints.save(state, number, run.description())
        if stopping and not last:
            checkpoints.wait()
            log.say(f'stopped by a signal: step {number} is saved. The same command goes on from there.')
            log.close()
            return STOPPED
        clock.restart(number)
    run.finish(steps.averaged_params(state), evaluated, evaluate)
    checkpoints.wait()
    log.say(f'done: {config.total_steps} steps; checkpoint {workdir / "checkpoints" / str(config.total_steps)}')
    log.close()
    return 0


def evaluate(config: RunConfig, workdir: Path) -> int:
    """Evaluates `config.init`, or else the newest checkpoint of `workdir`, on the held-out data; prints the metrics as JSON.

    Writes `predictions.csv` to the work directory where the task predicts classes.
    """
    run = _Run(config, workdir)
    check(run.held_out is not None, f'there are no held-out images: {HELD_OUT}.')
    path = config.init or str(workdir)
    params, fresh, notes = run.load_params(path)
    check(not fresh, f'{path} has nothing for {", ".join(fresh)}: it cannot be evaluated before it is fine-tuned. Give another config.init, or '
          '--config.init= for the newest checkpoint of --workdir.')
    for note in notes if jax.process_index() == 0 else ():
        print(note, file=sys.stderr)
    with PredictionsWriter(workdir / 'predictions.csv', run.held_out, active=jax.process_index() == 0) as predictions:
        metrics = run.make_evaluation(predictions.write)(params)
    if jax.process_index() == 0:
        print(json.dumps({name: float(value) for name, value in metrics.items()}))
    return 0


class _Run:
    """What a run has before the first step: checked data, task, mesh; everything that can be refused is refused here."""

    def __init__(self, config: RunConfig, workdir: Path):
        self.workdir = workdir
        self.mesh = make_mesh(config.mesh)
        check_batch(self.mesh, config.batch_size, config.accumulate_steps)
        self.source, self.held_out = open_source(config.data, 'train'), open_source(config.data, 'evaluate')
        self.config = config = config.resolve(len(self.source), self.source.class_names)
        self.task = make_task(config)
        self.sampler = Sampler(len(self.source), config.batch_size, config.seed, repeat_views=config.data.repeat_views,
                               repetitions=config.data.repeated_augmentation)
        self.rows = local_rows(self.mesh, config.batch_size)
        from beit_jax.data import pipeline  # here and not above: TensorFlow is loaded only by those who read data
        self.pipeline = pipeline
        pipeline.check_source(self.source, config.data)
        check(self.held_out is not None or not self.task.needs_held_out, f'config.task={config.task} needs held-out images: {HELD_OUT}.')

    def summary(self) -> str:
        state = jax.tree.leaves(steps.abstract_params(self.task))
        return (f'{self.config.task}: {sum(leaf.size for leaf in state):,} parameters; {len(self.source):,} images; batch '
                f'{self.config.batch_size}; {self.config.total_steps:,} steps; mesh '
                + ' x '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items()) + f' of {jax.devices()[0].device_kind}')

    def description(self) -> dict:
        return {'task': self.config.task, 'architecture': self.task.describe(), 'classes': self.source.class_names, 'data': self.fingerprint,
                'config': json.loads(json.dumps(dataclasses.asdict(self.config))),
                'versions': {'beit_jax': beit_jax.__version__, 'jax': jax.__version__}}

    @functools.cached_property  # once a run, not once a save: a tokenizer may have hundreds of megabytes
    def fingerprint(self) -> dict:
        """What decides, besides the config, what a step sees: the examples, and the arrays that are not learned (a tokenizer)."""
        return {'examples': len(self.source), 'manifest': self.source.fingerprint, 'seed': self.config.seed,
                'batch_size': self.config.batch_size, 'tokenizer': self.task.fingerprint()}

    @functools.cached_property
    def frozen(self):
        """The arrays of the task that are not learned, on every device."""
        place = functools.partial(jax.device_put, device=replicated(self.mesh))
        frozen = place(self.task.frozen)
        return place(self.task.calibrate(frozen, functools.partial(self.host_batches, frozen)))  # what is in place already stays there

    def restore_or_init(self, checkpoints: Checkpoints, optimizer):
        """(the state, lines that say what became of the checkpoint that it starts from)."""
        config = self.config
        abstract = steps.abstract_state(self.task, optimizer)
        shardings = state_shardings(self.mesh, abstract)
        placed = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings)
        state, lines = checkpoints.restore_newest(placed, self._check_data)
        if state is not None:
            return state, lines
        if jax.process_index() == 0:
            self._write_parameter_table()
        params, _, notes = self.load_params(config.init) if config.init else (
            steps.initial_params(self.task, config.seed, shardings['params']), (), [])
        return steps.initial_state(self.task, optimizer, self.mesh, params), notes

    def _check_data(self, description: dict) -> None:
        differing = records.differences(description['data'], self.fingerprint)
        check(not differing, f'{self.workdir} holds a run on other data ({"; ".join(differing)}): give the data and the tokenizer of that '
              'run, or another --workdir.')

    def load_params(self, path: str):
        """(the parameters in a checkpoint or a file as this run's model takes them, prefixes of paths that start fresh, lines for the user)."""
        place = functools.partial(state_shardings, self.mesh)
        params, description = load_weights(path, place)
        params, fresh, notes = self.task.adapt(params, description, self.source.class_names, path)
        abstract = steps.abstract_params(self.task)
        if fresh:
            params = steps.merge(params, steps.initial_params(self.task, self.config.seed, place(abstract), fresh))
        check_params(abstract, params, path)
        return params, fresh, [*description.get('notes', ()), *notes]

    def open_cache(self, start: int, log: MetricsWriter) -> None:
        """Where tokens are cached: checks what is there, and from which step on it suffices."""
        self.cache, self.cached_from = None, _NEVER
        tokenizer, data = self.task.token_cache, self.config.data
        if tokenizer is None:
            return
        directory = Path(tokenizer.cache_path or self.workdir / 'tokens')
        (view,), examples, batch_size = self.task.prepare_views, len(self.source), self.config.batch_size
        # as JSON gives it back
        fingerprint = json.loads(json.dumps({name: self.fingerprint[name] for name in ('examples', 'manifest', 'seed', 'tokenizer')} | {
            'views': tokenizer.cache_views, 'size': view.size, 'precision': tokenizer.precision, 'crop_scale': data.crop_scale,
            'crop_ratio': data.crop_ratio, 'flip': data.flip, 'color_jitter': data.color_jitter}))
        tokens = self.config.grid[0] * self.config.grid[1]
        self.cache = TokenCache(directory, fingerprint, examples, tokenizer.cache_views, tokens, start * batch_size)
        self.cached_from = -(-self.cache.complete_at // batch_size)
        log.say(f'tokens are computed up to step {self.cached_from} and from then on read from {directory}')

    def flush_cache(self, step: int) -> None:
        if self.cache:
            self.cache.flush(step * self.config.batch_size)

    def _write_parameter_table(self):
        table = optimizers.parameter_table(steps.abstract_variables(self.task), self.config.optimizer.layer_decay)
        (self.workdir / 'parameters.txt').write_text(table)

    def train_batches(self, start: int):
        """Endless batches on the devices, read one ahead of the step and ready for it: with tokens, computed or from the cache."""
        prepare = self._make_preparation()
        batches = functools.partial(self.pipeline.train_batches, self.source, self.sampler, config=self.config.data, rows=self.rows)
        with_tokenizer = itertools.islice(batches(views=self.task.views + self.task.prepare_views, start_step=start),
                                          max(0, self.cached_from - start))
        without = batches(views=self.task.views, start_step=max(start, self.cached_from))
        ahead = None
        for batch in itertools.chain(with_tokenizer, without):
            self._name_substituted(batch, self.source, 'another example took its place')
            placed = batch['view'], put_batch(self.mesh, batch, self.config.batch_size)
            if ahead is not None:
                yield prepare(*ahead)
            ahead = placed

    def _make_preparation(self):
        """(numbers of this process's views, batch) -> the batch that the step takes: with tokens, computed or from the cache."""
        names = {view.name for view in self.task.prepare_views}
        compute = steps.make_prepare(self.task, self.mesh, train=True)

        def prepare(views, batch):
            if names <= batch.keys():
                made = compute(self.frozen, {name: batch[name] for name in (*names, 'view')})
                if self.cache:
                    self.cache.put(*self._whole((batch['view'], made['tokens'])))
            else:
                made = put_batch(self.mesh, {'tokens': self.cache.read(views)}, self.config.batch_size)
            return {name: value for name, value in batch.items() if name not in names} | made
        return prepare

    @staticmethod
    def _name_substituted(batch, source, what):
        for index in batch['index'][batch['substituted']]:
            print(f'warning: {source.name(index)} cannot be read; {what}', flush=True)

    def evaluation_batches(self, source: Source, frozen):
        """The batches of one pass over `source` on the devices, prepared."""
        views = self.task.views + self.task.prepare_views
        batches = self.pipeline.evaluate_batches(source, self.config.batch_size, views, self.config.data, self.rows,
                                                 self.config.data.evaluate_crop)
        for batch in batches:
            self._name_substituted(batch, source, 'it is left out')
            placed = put_batch(self.mesh, steps.model_inputs(batch), self.config.batch_size)
            yield placed | self._prepare(frozen, placed)

    @functools.cached_property  # compiled once a run, not once an evaluation
    def _prepare(self):
        return steps.make_prepare(self.task, self.mesh, train=False)

    def make_evaluation(self, write_rows: Callable[[dict], None] | None = None):
        """params -> metrics over all held-out images, each counted once, under keys eval/...

        With `write_rows`, which gets the rows of each batch, the images per second are among them.
        """
        summarize = jax.jit(self.task.summarize)
        step = steps.make_evaluate_step(self.task, self.mesh, state_shardings(self.mesh, steps.abstract_params(self.task)))

        def evaluate(params):
            total, counted, began = None, len(self.held_out), time.perf_counter()
            for number, batch in enumerate(self.evaluation_batches(self.held_out, self.frozen)):
                sums, rows = jax.device_get(step(params, batch, number))
                total = add_sums(total, sums)
                if write_rows:
                    write_rows(rows)
                if number == 0 and len(self.held_out) > self.config.batch_size:  # the first batch waits for the compiler
                    counted, began = len(self.held_out) - self.config.batch_size, time.perf_counter()
            seconds, metrics = time.perf_counter() - began, jax.device_get(summarize(total))
            if write_rows:
                metrics['images_per_second'] = counted / seconds
            return {f'eval/{name}': value for name, value in metrics.items()}
        return evaluate

    def host_batches(self, frozen, split: str, limit: int):
        """Whole batches of `limit` images at most, spread over a split: see `beit_jax.tasks.Batches`."""
        source = self.source if split == 'train' else self.held_out
        kept = Subset(source, np.linspace(0, len(source), min(limit, len(source)), endpoint=False).astype(int))
        return (jax.device_get(self._whole(batch)) for batch in self.evaluation_batches(kept, frozen))

    @functools.cached_property
    def _whole(self):
        """jitted: any tree of arrays -> the same, whole on every device."""
        return jax.jit(lambda tree: tree, out_shardings=replicated(self.mesh))

    def finish(self, params, metrics: dict | None, evaluate) -> None:
        """Has the task write what else it owes; metrics: of the last evaluation, None where the run was stopped between that and here."""
        metrics = metrics or (evaluate(params) if self.held_out else {})
        self.task.finish(jax.device_get(self._whole(params)), self.workdir, functools.partial(self.host_batches, self.frozen), metrics)

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
        check(share <= self.config.data.max_bad_share or metrics['bad_records'] <= 1,
              f'{int(metrics["bad_records"])} of {seen} examples could not be read ({share:.1%}), more than config.data.max_bad_share '
              f'({self.config.data.max_bad_share:.1%}): repair {self.config.data.path or self.config.data.name} or raise it.')

    def _check_skipped(self, log: MetricsWriter, step: int, in_a_row: int) -> None:
        """Says that steps were skipped, and refuses to go on after too many; their first batch is then in the work directory."""
        if not in_a_row:
            return
        first = step - in_a_row + 1
        log.say(f'warning: loss or gradient of step {step} is not finite: it is skipped, as are all since step {first}')
        if in_a_row < self.config.max_skipped_steps:
            return
        batch = next(self.pipeline.train_batches(self.source, self.sampler, self.task.views + self.task.prepare_views, self.config.data,
                                                 self.rows, first - 1))
        path = self.workdir / f'skipped_step_{first}_process_{jax.process_index()}.npz'
        np.savez(path, **batch)
        raise RequestError(f'loss or gradient of {in_a_row} steps in a row, from step {first} on, were not finite. None of them changed the '
                           f'parameters; the batch of step {first} is in {path}. Lower config.optimizer.lr, or set config.optimizer.clip_norm.')


class _Clock:
    """Images per second between the logged steps, without the time of evaluations and saves."""

    def __init__(self, step: int, batch_size: int):
        self._batch_size, self.laps = batch_size, 0
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def lap(self, step: int) -> float:
        rate = (step - self._step) * self._batch_size / (time.perf_counter() - self._time)
        self.restart(step)
        self.laps += 1
        return rate


def _claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Writes config.json, or refuses a work directory that holds the run of another config."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    path = workdir / 'config.json'
    if path.exists():
        old, new = _flatten(json.loads(path.read_text())), _flatten(settings)
        free = lambda name: any(name == prefix or name.startswith(prefix + '.') for prefix in FREE_SETTINGS)
        differing = [f'config.{name} was {old.get(name)!r}, is {new.get(name)!r}' for name in sorted(old.keys() | new.keys())
                     if old.get(name) != new.get(name) and not free(name)]
        check(not differing, f'{workdir} holds a run of another config ({"; ".join(differing[:4])}{"; ..." if len(differing) > 4 else ""}): '
              'give that config, or another --workdir.')
    if jax.process_index() == 0:
        with writing(workdir):
            path.write_text(json.dumps(settings, indent=2) + '\n')


def _flatten(settings: dict, prefix: str = '') -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def _compile(train_step, state, batch):
    """(the compiled step, a line about the time it took and the memory it needs)."""
    began = time.perf_counter()
    compiled = train_step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    sizes = f'; {memory.argument_size_in_bytes / 1e9:.2f} GB of arguments and {memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries a device'
    return compiled, f'compiled the step in {time.perf_counter() - began:.1f} s{sizes if memory else ""}'


def _profile(config: RunConfig, number: int, workdir: Path) -> None:
    profile = config.profile
    if profile.steps and number == profile.start:
        jax.profiler.start_trace(str(workdir / 'profile'))
    if profile.steps and number == profile.start + profile.steps:
        jax.profiler.stop_trace()
