"""Held-out pictures and what the model makes of them, as it learns."""

from collections.abc import Callable

import jax
import numpy as np

from beit_jax.data.pictures.grid import grid_picture, visible
from beit_jax.tasks.reconstruction import Drawing
from beit_jax.train.run import Run
from beit_jax.train.sharding import gather


def make_drawing(run: Run, drawing: Drawing) -> Callable[..., dict]:
    """params -> {'eval/pictures': a row for each of `config.pictures` held-out images, uint8 [H, W,
    3]}; {} in other processes than the first, which call it too."""
    draw, pictures = jax.jit(drawing.draw), []

    def drawn(params):
        here = jax.tree.map(lambda leaf: leaf.addressable_data(0), gather(run.mesh)(params))
        if jax.process_index():
            return {}
        if not pictures:  # they are read once
            pictures.append(run.batches.some_held_out(run.config.pictures))
        columns = draw(drawing.arrays, here, pictures[0])
        shown = [visible(np.asarray(column)) for column in columns]
        return {'eval/pictures': np.asarray(grid_picture(shown, drawing.titles))}

    return drawn
