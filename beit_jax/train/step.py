"""The state of a run and the two jitted functions on it: a training step and an evaluation step.

State: {'step' int32, 'params', 'optimizer', 'bad_records' int32}: trees of arrays, laid over the mesh by `sharding.RULES`. Every random
draw of a step is keyed by (seed, step, row of the batch), so it depends neither on the mesh nor on how the batch is accumulated.
"""
import functools
import zlib

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import optax

from beit_jax.models.layers import Divided
from beit_jax.train.sharding import batch_sharding, replicated, state_shardings


def abstract_params(task):
    """Shapes and dtypes of the parameters."""
    return nnx.to_pure_dict(abstract_variables(task))


def abstract_state(task, optimizer):
    """Shapes and dtypes of the state."""
    return jax.eval_shape(functools.partial(_with_params, optimizer), abstract_params(task))


def initial_params(task, seed: int, shardings=None):
    """Fresh parameters. Each depends on the seed and its path alone, and every device makes its own part only."""
    key, leaves = jax.random.key(seed), nnx.to_flat_state(abstract_variables(task))
    shardings = traverse_util.flatten_dict(shardings) if shardings else {}
    values = {}
    for path, leaf in leaves:
        initializer, divisor = leaf.initializer, 1.0
        if isinstance(initializer, Divided):  # the divisor differs from layer to layer: not part of what is compiled
            initializer, divisor = initializer.initializer, initializer.divisor
        draw = _drawing(initializer, leaf.shape, shardings.get(path))
        value = draw(jax.random.fold_in(key, zlib.crc32('/'.join(path).encode())))
        values[path] = value if divisor == 1 else value / divisor
    return traverse_util.unflatten_dict(values)


def initial_state(task, optimizer, mesh, seed: int):
    """The state before the first step, laid over the mesh."""
    shardings = state_shardings(mesh, abstract_state(task, optimizer))
    params = initial_params(task, seed, shardings['params'])
    return jax.jit(functools.partial(_with_params, optimizer), out_shardings=shardings)(params)


def abstract_variables(task) -> nnx.State:
    """The parameters as the module declares them: shapes, dtypes and initialisers."""
    return nnx.state(nnx.eval_shape(lambda: task.build(nnx.Rngs(0))), nnx.Param)


@functools.lru_cache(maxsize=256)
def _drawing(initializer, shape, sharding):
    """A jitted draw, compiled once for all parameters of a kind: one program for the whole model takes ten times as long to compile."""
    return jax.jit(lambda key: initializer(key, shape), out_shardings=sharding)


def _with_params(optimizer, params):
    return {'step': jnp.int32(0), 'params': params, 'optimizer': optimizer.init(params), 'bad_records': jnp.int32(0)}


def make_train_step(task, optimizer, schedule, mesh, total_steps: int):
    """jitted (state, frozen, batch) -> (state, metrics); the state is donated.

    batch: arrays of global batch size, rows over the mesh. metrics: float32 scalars, replicated: those of the task and `lr`, `grad_norm`
    (before clipping), `param_norm`, `bad_records` (of the run so far).
    """
    config = task.config
    base_key = jax.random.key(config.seed)

    def train_step(state, frozen, batch):
        step, params = state['step'], state['params']
        keys_B = jax.random.split(jax.random.fold_in(base_key, step), config.batch_size)

        def gradients_and_sums(part, keys):
            loss = lambda params: task.loss(params, frozen, part, keys, progress=step / total_steps, train=True)
            (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return gradients, sums

        gradients, sums = _accumulate(gradients_and_sums, model_inputs(batch), keys_B, config.accumulate_steps)
        gradients = jax.tree.map(lambda gradient: gradient / sums['weight'], gradients)
        updates, optimizer_state = optimizer.update(gradients, state['optimizer'], params)
        bad_records = state['bad_records'] + jnp.sum(batch['substituted'], dtype=jnp.int32)
        metrics = task.summarize(sums) | {'lr': schedule(step), 'grad_norm': optax.tree.norm(gradients),
                                          'param_norm': optax.tree.norm(params), 'bad_records': bad_records}
        state = {'step': step + 1, 'params': optax.apply_updates(params, updates), 'optimizer': optimizer_state, 'bad_records': bad_records}
        return state, metrics

    shardings = state_shardings(mesh, abstract_state(task, optimizer))
    return jax.jit(train_step, donate_argnums=0, in_shardings=(shardings, replicated(mesh), batch_sharding(mesh)),
                   out_shardings=(shardings, replicated(mesh)))


def model_inputs(batch: dict) -> dict:
    """The batch without what only the run's bookkeeping needs."""
    return {name: value for name, value in batch.items() if name not in ('index', 'substituted')}


def _accumulate(function, batch, keys_B, parts: int):
    """Sum of function(part of the batch, its keys) over `parts` parts; part a has the rows a, a + parts, ... so that no row changes device."""
    if parts == 1:
        return function(batch, keys_B)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (batch, keys_B))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *jax.tree.map(lambda x: x[0], split)))
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None), zeros, split)
    return total


def make_evaluate_step(task, mesh, params_shardings):
    """jitted (params, frozen, batch, number of the batch) -> sums, replicated: to be added up and given to `task.summarize`."""
    base_key = jax.random.key(task.config.seed)

    def evaluate_step(params, frozen, batch, number):
        keys_B = jax.random.split(jax.random.fold_in(base_key, number), task.config.batch_size)
        return task.loss(params, frozen, batch, keys_B, progress=1.0, train=False)[1]

    return jax.jit(evaluate_step, in_shardings=(params_shardings, replicated(mesh), batch_sharding(mesh), replicated(mesh)),
                   out_shardings=replicated(mesh))
