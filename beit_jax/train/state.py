"""The state of a run: {'params', 'optimizer', the counts 'step', 'bad_records', 'skipped_steps' and
'skipped_in_a_row', int32} and, where it is wanted, 'ema': trees of arrays, laid over the mesh by
`sharding.RULES`.
"""

from collections.abc import Iterator
import functools
import zlib

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp

from beit_jax.models.initializers import Divided
from beit_jax.train.sharding import state_shardings


def abstract_params(task):
    """Shapes and dtypes of the parameters."""
    return nnx.to_pure_dict(task.abstract)


def learned(task, params):
    """The sub-tree of the parameters that are learned."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(
        {path: value for path, value in flat.items() if task.learns('/'.join(path))}
    )


def abstract_state(task, optimizer):
    """Shapes and dtypes of the state."""
    return jax.eval_shape(_state_of(task, optimizer), abstract_params(task))


def drawings(task, shardings=None, below: tuple[str, ...] = ('',)) -> Iterator[tuple]:
    """(path, jitted function of a key that draws it, what is drawn is divided by) of each parameter
    whose path starts with one of `below`. Parameters of a kind share the function, and every device
    makes its own part only."""
    shardings = traverse_util.flatten_dict(shardings) if shardings else {}
    for path, leaf in nnx.to_flat_state(task.abstract):
        if '/'.join(path).startswith(below):
            initializer, divisor = leaf.initializer, 1.0
            # the divisor differs from layer to layer: not part of what is compiled
            if isinstance(initializer, Divided):
                initializer, divisor = initializer.initializer, initializer.divisor
            yield path, _drawing(initializer, leaf.shape, shardings.get(path)), divisor


def initial_params(task, seed: int, shardings=None, below: tuple[str, ...] = ('',)):
    """Fresh parameters, those whose paths start with one of `below`. Each depends on the seed and
    its path alone."""
    key, values = jax.random.key(seed), {}
    for path, draw, divisor in drawings(task, shardings, below):
        value = draw(jax.random.fold_in(key, zlib.crc32('/'.join(path).encode())))
        values[path] = value if divisor == 1 else value / divisor
    return traverse_util.unflatten_dict(values)


def merge(params, others):
    """Two nested dicts of arrays in one; where both have an array, that of `others`."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(params) | traverse_util.flatten_dict(others)
    )


def initial_state(task, optimizer, mesh, params):
    """The state before the first step, laid over the mesh as the parameters are."""
    return make_initial_state(task, optimizer, mesh)(params)


def make_initial_state(task, optimizer, mesh):
    """jitted params -> state."""
    return jax.jit(
        _state_of(task, optimizer),
        out_shardings=state_shardings(mesh, abstract_state(task, optimizer)),
    )


def averaged_params(state):
    """What is evaluated and exported: the moving average where there is one, else the
    parameters."""
    return state.get('ema', state['params'])


@functools.lru_cache(maxsize=256)
def _drawing(initializer, shape, sharding):
    """A jitted draw, compiled once for all parameters of a kind: one program for the whole model
    takes ten times as long to compile."""
    return jax.jit(lambda key: initializer(key, shape), out_shardings=sharding)


def _state_of(task, optimizer):
    """params -> state."""

    def state(params):
        average = {'ema': jax.tree.map(jnp.copy, params)} if task.config.ema_decay else {}
        counts = {
            name: jnp.int32(0)
            for name in ('step', 'bad_records', 'skipped_steps', 'skipped_in_a_row')
        }
        return (
            counts
            | {'params': params, 'optimizer': optimizer.init(learned(task, params))}
            | average
        )

    return state
