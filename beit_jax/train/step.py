"""The jitted functions of a run: one that prepares a batch (tokens), a training step and an
evaluation step.

Every random draw is keyed by the number of the view, or by (seed, step, row of the batch): it
depends neither on the mesh nor on how the batch is accumulated.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from beit_jax.train.sharding import REPLICAS, batch_sharding, on_mesh, replicated, state_shardings
from beit_jax.train.state import abstract_state, learned, merge

_AUGMENT = 0x617567  # sets the key of a batch apart from those of its rows
_BEGIN = 0x626567  # and that of the first batch from those of the steps


def make_prepare(task, mesh, *, train: bool):
    """jitted (frozen, batch) -> what `task.prepare` makes, {} where there is nothing to prepare. A
    program of its own, so that the step is the same whether or not it runs."""
    if not task.prepare_views:
        return lambda frozen, batch: {}
    parts = task.config.accumulate_steps

    def prepare(frozen, batch):
        if parts == 1 or not train:
            return task.prepare(frozen, batch, train=train)
        return _join(
            jax.lax.map(lambda part: task.prepare(frozen, part, train=train), _split(batch, parts))
        )

    return jax.jit(
        on_mesh(mesh, prepare),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=batch_sharding(mesh),
    )


def make_train_step(task, optimizer, schedule, mesh, total_steps: int):
    """jitted (state, batch) -> (state, metrics); the state is donated.

    batch: arrays of global batch size, rows over the mesh, with what `make_prepare` adds. metrics:
    float32 scalars, replicated: those of the task and `lr`, `grad_norm` (before clipping),
    `param_norm`, `bad_records` and `skipped_steps` (of the run so far), `skipped_in_a_row`. A step
    whose loss or gradient is not finite, or that starts from parameters that are not, leaves
    parameters, moments and moving average as they were.
    """
    config = task.config
    base_key = jax.random.key(config.seed)

    def train_step(state, batch):
        step, params = state['step'], state['params']
        step_key = jax.random.fold_in(base_key, step)
        keys_B = jax.random.split(step_key, config.batch_size)
        batch_key = jax.random.fold_in(step_key, _AUGMENT)

        def gradients_and_sums(params, part, keys_B):
            progress = step / total_steps

            def loss(mine):
                whole = merge(params, mine)
                return task.loss(whole, part, keys_B, progress=progress, train=True)

            (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(learned(task, params))
            return gradients, sums

        inputs = task.augment(model_inputs(batch), batch_key, keys_B)
        gradients, sums = _accumulate(
            gradients_and_sums, params, (inputs, keys_B), config.accumulate_steps, mesh
        )
        gradients = jax.tree.map(lambda gradient: gradient / sums['weight'], gradients)
        mine = learned(task, params)
        updates, optimizer_state = optimizer.update(gradients, state['optimizer'], mine)
        bad_records = state['bad_records'] + jnp.sum(batch['substituted'], dtype=jnp.int32)
        metrics = task.summarize(sums) | {
            'lr': schedule(step),
            'grad_norm': optax.tree.norm(gradients),
            'param_norm': optax.tree.norm(params),
            'bad_records': bad_records,
        }
        # The update itself is not looked at here: one more use of it compiles other sums. What it
        # spoils is seen by the step after it, and before it is saved (`are_finite`).
        finite = functools.reduce(
            jnp.logical_and,
            (jnp.isfinite(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')),
        )
        skipped = {
            'skipped_steps': state['skipped_steps'] + ~finite,
            'skipped_in_a_row': jnp.where(finite, 0, state['skipped_in_a_row'] + 1),
        }
        mine = optax.apply_updates(mine, updates)
        followed = task.follow(params, sums)  # of sums over parts and replicas
        if followed:
            mine = merge(mine, followed)
        new = {'params': merge(params, mine), 'optimizer': optimizer_state}
        if config.ema_decay:
            # the first steps are soon forgotten
            decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
            average = optax.incremental_update(mine, learned(task, state['ema']), 1 - decay)
            new['ema'] = merge(state['ema'], average)
        new = {
            name: jax.tree.map(functools.partial(_keep, finite), tree, state[name])
            for name, tree in new.items()
        }
        return new | skipped | {'step': step + 1, 'bad_records': bad_records}, metrics | skipped

    shardings = state_shardings(mesh, abstract_state(task, optimizer))
    return jax.jit(
        on_mesh(mesh, train_step),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def make_begin(task, mesh):
    """jitted (params, the first training batch) -> `task.begin`, the same on every device."""
    key = jax.random.fold_in(jax.random.key(task.config.seed), _BEGIN)
    begin = lambda params, batch: task.begin(params, model_inputs(batch), key)
    return jax.jit(on_mesh(mesh, begin), out_shardings=replicated(mesh))


@jax.jit
def are_finite(params):
    """Whether the norm of all parameters is finite. bool []."""
    return jnp.isfinite(optax.tree.norm(params))


def _keep(finite, new, old):
    """`new`, or `old` after a step that is skipped; what counts steps (the optimizer's schedule)
    goes on."""
    return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)


def model_inputs(batch: dict) -> dict:
    """The batch without what only the run's bookkeeping needs."""
    return {
        name: value for name, value in batch.items() if name not in ('index', 'used', 'substituted')
    }


def _split(tree, parts: int):
    """[B, ...] -> [parts, B / parts, ...]; part a has the rows a, a + parts, ... so that no row
    changes device."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def _join(tree):
    """The inverse of `_split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _accumulate(function, params, batch, parts: int, mesh):
    """Sum of function(params, *part of the batch) over `parts` parts. Replicas add up their own
    parts, and their sums once, at the end."""
    if parts == 1:
        return function(params, *batch)
    replicas = tuple(axis for axis in REPLICAS if mesh.shape[axis] > 1)

    def over_parts(params, batch):
        split = _split(batch, parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(function, params, *jax.tree.map(lambda x: x[0], split)),
        )
        total, _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, function(params, *part)), None),
            zeros,
            split,
        )
        return jax.lax.psum(total, replicas)

    if not replicas:
        return over_parts(params, batch)
    return jax.shard_map(
        over_parts,
        in_specs=(P(), P(replicas)),
        out_specs=P(),
        axis_names=set(replicas),
        check_vma=False,
    )(params, batch)


def make_evaluate_step(task, mesh, params_shardings):
    """jitted (params, batch, number of the batch) -> (sums: to be added up and given to
    `task.summarize`; rows: what the task tells of each image), replicated."""
    base_key = jax.random.key(task.config.seed)

    def evaluate_step(params, batch, number):
        keys_B = jax.random.split(jax.random.fold_in(base_key, number), task.config.batch_size)
        sums = dict(task.loss(params, batch, keys_B, progress=1.0, train=False)[1])
        rows = sums.pop('rows', {})
        return sums, rows

    return jax.jit(
        on_mesh(mesh, evaluate_step),
        in_shardings=(params_shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
