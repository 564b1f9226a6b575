"""Memory of a training step of BEiT-base at 640 x 640, as the CPU's compiler plans it.

python -m pytest -m slow -s tests/train/test_segment_memory.py
"""

import jax
import pytest

from beit_jax.performance.programs import step_programs
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import make_mesh


def temporaries(images: int, remat: bool) -> int:
    """Bytes of a step besides its arguments (state and batch). A scan over the blocks: the CPU's
    compiler undoes remat elsewhere."""
    settings = f'base,640,batch_size={images},model.unroll=1,model.remat={str(remat).lower()}'
    config = task_config(load_recipe('configs/segment_ade20k.py', settings))
    program = step_programs(config, make_mesh(MeshConfig(), jax.devices()[:1]))['step']
    memory = program.function.lower(*program.inputs).compile().memory_analysis()
    print(
        f'{images} images, remat {remat}: {memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries, '
        f'{memory.argument_size_in_bytes / 1e9:.2f} GB of arguments',
        flush=True,
    )
    return memory.temp_size_in_bytes


@pytest.mark.slow
def test_memory_at_640():
    """At most linear in the batch, and less with remat."""
    found = {
        (images, remat): temporaries(images, remat) for remat in (False, True) for images in (1, 2)
    }
    for remat in (False, True):
        assert found[2, remat] <= 2 * found[1, remat]
    assert found[1, True] < found[1, False]
