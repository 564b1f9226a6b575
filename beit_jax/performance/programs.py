"""The programs that a step of a recipe runs, and the shapes of what they take: what `plan` compiles
and `benchmark step` times."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from beit_jax.data.config import one_size
from beit_jax.errors import check
from beit_jax.models.tokenizers import make_tokenizer
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import make_task
from beit_jax.tasks.pretrain import make_on_given_tokens
from beit_jax.tasks.vqkd import make_on_given_features
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train import step as steps
from beit_jax.train.flops import of_preparation, of_step
from beit_jax.train.sharding import check_batch, on_mesh, replicated, state_shardings

IMAGES, CLASSES = 1_281_167, 1000  # of ImageNet-1k, where a recipe leaves them to the data
PIXEL_CLASSES = 150  # of ADE20K


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, what it takes (a tuple of trees of abstract shapes), and the arithmetic of
    its method: the products of the forward pass, and twice as much for a backward pass; what is
    recomputed does not count."""

    function: Callable
    inputs: tuple
    flops: int


def step_programs(config: RunConfig, mesh, dall_e: bool = False) -> dict[str, Program]:
    """{'step': (state, batch) -> (state, metrics)}, and with a tokenizer {'tokenizer': (its
    parameters, batch) -> tokens}, with VQ-KD's teacher {'teacher': ... -> features}.

    config: an empty tokenizer.path stands for tokens that are given, or with `dall_e` for DALL-E's
    tokenizer, of which only the shapes count; an empty teacher.path for features that are given.

    Raises:
      RequestError: a batch that the mesh does not divide.
    """
    config, task, schedule, optimizer = _set_up(config, mesh, dall_e)
    step = steps.make_train_step(task, optimizer, schedule, mesh, config.total_steps)
    state, batch = states.abstract_state(task, optimizer), _batch(config.batch_size, task.views)
    if config.task == 'classify' and config.data.labels != 'class':
        batch['label'] = _shape(config.batch_size, config.num_classes, dtype=jnp.float32)
    if config.task == 'pretrain' and config.target == 'tokens':
        rows, columns = config.grid
        batch['tokens'] = _shape(config.batch_size, rows * columns, dtype=jnp.uint16)
    if config.task == 'vqkd':
        (rows, columns), width = task.config.grid, task.config.model.features
        batch['features'] = _shape(config.batch_size, rows * columns, width, dtype=jnp.float32)
    flops = of_step(task, state['params'], batch)
    programs = {'step': Program(step, (state, batch), flops)}
    name = {'pretrain': 'tokenizer', 'vqkd': 'teacher'}.get(config.task)
    if name and task.frozen:
        frozen = jax.tree.map(lambda leaf: _shape(*leaf.shape, dtype=leaf.dtype), task.frozen)
        inputs = frozen, _batch(config.batch_size, task.prepare_views)
        flops = of_preparation(task, frozen)
        programs[name] = Program(steps.make_prepare(task, mesh, train=True), inputs, flops)
    return programs


def initial_programs(config: RunConfig, mesh) -> list[Program]:
    """What makes the state that a run starts with: one program for each kind of parameter, and one
    that adds the optimizer's part."""
    _, task, _, optimizer = _set_up(config, mesh)
    params = states.abstract_params(task)
    shardings = state_shardings(mesh, params)

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    key = placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    draws = dict.fromkeys(draw for _, draw, _ in states.drawings(task, shardings))
    whole = states.make_initial_state(task, optimizer, mesh)
    inputs = (jax.tree.map(placed, params, shardings),)
    return [*(Program(draw, (key,), 0) for draw in draws), Program(whole, inputs, 0)]


def peak(memory) -> int:
    """Bytes that a program takes, with what it is given and what it makes; memory:
    `memory_analysis()` of what was compiled."""
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def peak_in_turns(memories: list) -> int:
    """Bytes that programs take which run one after the other: what one is given lies on the device
    while another runs."""
    given = [memory.argument_size_in_bytes for memory in memories]
    made = [peak(memory) - memory.argument_size_in_bytes for memory in memories]
    return sum(given) + max(made, default=0)


def _set_up(config, mesh, dall_e=False):
    """(config with what ImageNet-1k decides, task, schedule, optimizer)."""
    check_batch(mesh, config.batch_size, config.accumulate_steps)
    check(
        config.task != 'probe',
        'config.task=probe: its step is one small product on features; give a recipe of another '
        'task.',
    )
    classes = PIXEL_CLASSES if config.task == 'segment' else CLASSES
    config = config.resolve(IMAGES, tuple(map(str, range(classes))))
    task = on_mesh(mesh, _make_task)(config, dall_e)
    settings, steps_per_epoch = config.optimizer, IMAGES / config.batch_size
    schedule = optimizers.learning_rate(settings, config.total_steps, steps_per_epoch)
    params = states.learned(task, states.abstract_params(task))
    optimizer = optimizers.make_optimizer(settings, schedule, params)
    return config, task, schedule, optimizer


def _make_task(config, dall_e: bool):
    if config.task == 'vqkd' and not config.teacher.path:
        return make_on_given_features(config)
    if config.task != 'pretrain' or config.target == 'pixels' or config.tokenizer.path:
        return make_task(config)
    if not dall_e:
        return make_on_given_tokens(config)
    size = one_size(*(8 * side for side in config.grid))
    check(config.model.channels == 3, '--dall_e: its tokenizer is for pictures of three channels.')
    tokenizer = make_tokenizer('dvae', {}, size, config.tokenizer.precision)
    frozen = {'encoder': tokenizer.abstract()['encoder']}
    return dataclasses.replace(make_on_given_tokens(config, tokenizer), frozen=frozen)


def _shape(*sizes: int, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _batch(size: int, views) -> dict:
    """Shapes of what the input makes."""
    batch = {view.name: _shape(size, *view.shape, dtype=view.dtype) for view in views}
    return batch | {
        'label': _shape(size, dtype=jnp.int32),
        'view': _shape(size, dtype=jnp.uint32),
        'grey': _shape(size, dtype=jnp.float32),
        'valid': _shape(size, dtype=jnp.float32),
        'substituted': _shape(size, dtype=jnp.bool_),
    }
