"""Where a run starts: at its newest checkpoint that is whole, from the parameters of another, or
from random weights; and with which cached tokens."""

from collections.abc import Callable
import dataclasses
import functools
import json
from pathlib import Path

import jax

from beit_jax import whole_files
from beit_jax.models.memory import check_arrays
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train.processes.agreement import together
from beit_jax.train.run import Run
from beit_jax.train.sharding import state_shardings
from beit_jax.train.step import make_begin
from beit_jax.train.workdir.changes import refuse_changes
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.train.workdir.directory import writing
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.token_cache import TokenCache
from beit_jax.weights.hub import local
from beit_jax.weights.load import load_weights
from beit_jax.weights.trees import check_params


def restore_or_init(run: Run, checkpoints: Checkpoints):
    """The state to start from, over the mesh; what there is to say goes into the notes of the run.

    Raises:
      RequestError: a checkpoint of other data or another model, or none that is whole.
    """
    abstract = states.abstract_state(run.task, run.optimizer)
    shardings = state_shardings(run.mesh, abstract)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    check_arrays(placed, 'parameters and optimizer')
    state, lines = checkpoints.restore_newest(placed, functools.partial(_check_data, run))
    run.notes += lines
    if state is not None:
        return state
    if run.config.init:
        params, _, notes = load_params(run, run.config.init)
        run.notes += notes
    else:
        params = states.initial_params(run.task, run.config.seed, shardings['params'])
    with together():
        if jax.process_index() == 0:
            _write_parameter_table(run)
    return states.initial_state(run.task, run.optimizer, run.mesh, params)


def begun(run: Run, state: dict, batch: dict) -> dict:
    """The state before the first step, with what the task makes of its batch."""
    begin = make_begin(run.task, run.mesh)
    if not jax.eval_shape(begin, state['params'], batch):
        return state
    found = begin(state['params'], batch)
    names = [name for name in ('params', 'ema') if name in state]
    return state | {name: states.merge(state[name], found) for name in names}


def load_params(run: Run, path: str) -> tuple:
    """The parameters in a checkpoint or a file, as the model of the run takes them.

    Returns:
      (parameters, prefixes of paths that start fresh, lines for the user).

    Raises:
      RequestError: they do not fit the model.
    """
    place = functools.partial(state_shardings, run.mesh)
    with together():  # each host downloads for itself what is on a hub
        local(path, 'config.init' if path == run.config.init else '')
    params, description = load_weights(path, place)
    params, fresh, notes = run.task.adapt(params, description, run.source.class_names, path)
    abstract = states.abstract_params(run.task)
    if fresh:
        drawn = states.initial_params(run.task, run.config.seed, place(abstract), fresh)
        params = states.merge(params, drawn)
    check_params(abstract, params, path)
    return params, fresh, [*description.get('notes', ()), *notes]


def open_cache(
    run: Run, start: int, log: MetricsWriter, closed_later: Callable
) -> TokenCache | None:
    """The cache of tokens that the run goes on with after step `start`, if it has one; says from
    which step on it suffices. `closed_later` gets it.

    Raises:
      RequestError, StorageError: see `TokenCache`.
    """
    settings, config = run.task.token_cache, run.config
    if settings is None:
        return None
    directory = Path(settings.cache_path or run.workdir / 'tokens')
    (view,), data = run.task.prepare_views, config.data
    names = ('examples', 'manifest', 'seed', 'tokenizer')
    fingerprint = {name: run.fingerprint[name] for name in names} | {
        'views': settings.cache_views,
        'size': view.size,
        'precision': settings.precision,
        'crop_scale': data.crop_scale,
        'crop_ratio': data.crop_ratio,
        'flip': data.flip,
        'color_jitter': data.color_jitter,
    }
    if data.exif:
        fingerprint['exif'] = True
    if not data.pixels.is_rgb:
        fingerprint['pixels'] = dataclasses.asdict(data.pixels)
    if any(data.color_jitter):
        fingerprint['contrast'] = 'about the grey of the whole picture'
    cache = closed_later(
        TokenCache(
            directory,
            json.loads(json.dumps(fingerprint)),  # as JSON gives it back
            len(run.source),
            settings.cache_views,
            config.grid[0] * config.grid[1],
            start * config.batch_size,
        )
    )
    step = cache.complete_from(config.batch_size)
    log.say(f'tokens are computed up to step {step} and from then on read from {directory}')
    return cache


def _check_data(run: Run, description: dict) -> None:
    """Refuses a checkpoint of other data, or notes what has changed."""
    differing = whole_files.differences(description['data'], run.fingerprint)
    run.notes += refuse_changes(
        run.config,
        differing,
        f'{run.workdir} holds a run on other data',
        'give the data and the tokenizer of that run',
    )


def _write_parameter_table(run: Run) -> None:
    decay, learns = run.config.optimizer.layer_decay, run.task.learns
    table = optimizers.parameter_table(run.task.abstract, decay, learns)
    with writing(run.workdir):
        (run.workdir / 'parameters.txt').write_text(table)
