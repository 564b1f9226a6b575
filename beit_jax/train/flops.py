"""The arithmetic of a task's method, in floating-point operations of its matrix products and
convolutions: what utilisation is measured by. What is recomputed to save memory does not count."""

import jax
import numpy as np

from beit_jax.models.platform import on_no_device
from beit_jax.train import jaxprs
from beit_jax.train import step as steps


def of_step(task, params, batch) -> int:
    """Of a training step: the products of the forward pass, and twice as much for the backward
    pass, which does not go through what is frozen. params, batch: as the step takes them, or their
    shapes."""
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), task.config.batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def forward(params, key, keys_B, batch):
        batch = task.augment(steps.model_inputs(batch), key, keys_B)
        return task.loss(params, batch, keys_B, progress=0.0, train=True)[0]

    frozen = _counted(task.frozen_part, params, batch)
    return 3 * _counted(forward, params, key, keys_B, batch) - 2 * frozen


def of_preparation(task, frozen) -> int:
    """Of `Task.prepare` for a training batch; frozen: as it takes them, or their shapes."""
    if not task.prepare_views:
        return 0
    count = task.config.batch_size
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((count, *sizes), dtype)
    batch = {view.name: shape(view.dtype, *view.shape) for view in task.prepare_views}
    batch |= {'view': shape(np.uint32), 'grey': shape(np.float32)}
    return _counted(lambda *inputs: task.prepare(*inputs, train=True), frozen, batch)


def _counted(function, *arguments) -> int:
    # without shardings, which are those of the run's mesh
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return jaxprs.product_flops(on_no_device(function), *shapes)
