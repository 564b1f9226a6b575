"""AdamW with BEiT's decay mask and layer-wise learning rates (optim_factory.py). Which parameter is
treated how follows from its path."""

from collections.abc import Callable
import re

from flax import nnx
import jax
import optax

from beit_jax.errors import check
from beit_jax.settings.run import OptimizerConfig
from beit_jax.weights.trees import path_string

# Norm scales, LayerScale, biases, CLS and absolute positions are not decayed; mask token and bias
# tables are (optim_factory.py:65). Running statistics and codebooks, which no gradient reaches, are
# not either: the optimizer leaves them as they are, and the step sets them.
_NO_DECAY = re.compile(
    r'(^|/)(bias|scale|scale1|scale2|cls_token|position_embedding|running_mean|running_var'
    r'|codebook)$'
)
_EMBEDDING = re.compile(r'(^|/)(patch_embedding/\w+|cls_token|mask_token|position_embedding)$')
_BLOCK = re.compile(r'(^|/)blocks/(\d+)/')
_WARMUP_RATIO = 1e-6  # of mmcv's warm-up at step 0


def decays(path: str) -> bool:
    """Whether weight decay applies to the parameter."""
    return not _NO_DECAY.search(path)


def lr_scale(path: str, depth: int, layer_decay: float) -> float:
    """layer_decay ** (depth + 1 - id): id 0 for embeddings, i + 1 for block i, depth + 1 for all
    above (optim_factory.py:38)."""
    block = _BLOCK.search(path)
    layer = 0 if _EMBEDDING.search(path) else int(block[2]) + 1 if block else depth + 1
    return layer_decay ** (depth + 1 - layer)


def count_blocks(params) -> int:
    """How many transformer blocks a tree of parameters has; 0 for other models."""
    blocks = (
        _BLOCK.search(path_string(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    )
    return max((int(block[2]) + 1 for block in blocks if block), default=0)


def learning_rate(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine or a line to `final_lr` at `total_steps`; a function of
    the number of steps done.

    With schedule 'poly' the line begins at step 0, and the warm-up multiplies it by what grows from
    1e-6 to 1, as mmcv's poly policy does with linear warm-up (warmup_ratio=1e-6).
    """
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    check(
        warmup < total_steps,
        f'the warm-up takes {warmup} of {total_steps} steps: set config.optimizer.warmup_steps or '
        'warmup_epochs lower, or train longer.',
    )
    if config.schedule == 'poly':
        line = optax.linear_schedule(config.lr, config.final_lr, total_steps)
        share = optax.linear_schedule(_WARMUP_RATIO, 1.0, warmup) if warmup else lambda step: 1.0
        return lambda step: line(step) * share(step)
    if config.schedule == 'linear':
        down = optax.linear_schedule(config.lr, config.final_lr, total_steps - warmup)
        return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), down], [warmup])
    return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, total_steps, config.final_lr)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, params
) -> optax.GradientTransformation:
    """The update rule for a tree shaped like `params` (arrays or their abstract shapes)."""

    def by_path(function):
        return jax.tree_util.tree_map_with_path(lambda path, _: function(path_string(path)), params)

    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=by_path(decays)),
    ]
    if config.layer_decay != 1:
        depth = count_blocks(params)
        scales = by_path(lambda path: lr_scale(path, depth, config.layer_decay))
        multiply = lambda update, scale: update * scale
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(multiply, updates, scales)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def parameter_table(
    abstract_state, layer_decay: float, learns: Callable[[str], bool] = lambda path: True
) -> str:
    """One line a parameter: path, shape, initialiser, whether it is decayed or frozen, lr scale;
    then the total.

    abstract_state: the nnx.State of a module (abstract or not), whose parameters know their
    initialisers; learns: of a path, as `Task.learns`.
    """
    leaves = [('/'.join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(abstract_state)]
    depth = count_blocks({path: 0 for path, _ in leaves})
    rows = []
    for path, leaf in leaves:
        shape, initializer = str(list(leaf.shape)), str(leaf.get_metadata()['initializer'])
        scale = f'{lr_scale(path, depth, layer_decay):.6g}'
        treated = ('decay' if decays(path) else '-', scale) if learns(path) else ('frozen', '0')
        rows.append((path, shape, initializer, *treated))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        lines.append('  '.join(cells).rstrip())
    lines.append(f'total {sum(leaf.size for _, leaf in leaves):,}')
    return '\n'.join(lines) + '\n'
