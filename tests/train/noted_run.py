"""main.py, noting where it is and what it consumes, so that a test can end it at a chosen moment
and compare what was learned from.

    python -m tests.train.noted_run NOTES --config=... --workdir=...

NOTES gets a JSON line for each phase (compile, step, evaluation, save) as it begins; that of a step
has the numbers of its views and the examples that the sampler asked for. STEP_SECONDS in the
environment makes steps last longer, COPY_SECONDS is how often a run copies to a store.
"""

import json
import os
from pathlib import Path
import runpy
import sys
import time

from beit_jax.train.batches import Batches
from beit_jax.train.stepping import Stepper
from beit_jax.train.workdir import mirror
from beit_jax.train.workdir.checkpoint import Checkpoints


def note(file: int, phase: str, **what) -> None:
    os.write(file, (json.dumps({'phase': phase, **what}) + '\n').encode())


def rows_here(array) -> list[int]:
    """The values that lie on the devices of this process, in the order of their rows."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return [int(value) for shard in shards for value in shard.data]


def patch(file: int) -> None:
    compile_step, save = Stepper._compile, Checkpoints.save
    held_out, pictures = Batches.held_out, Batches.held_out_pictures

    def noted_compile(self, state, batch):
        note(file, 'compile')
        compile_step(self, state, batch)
        step = self._step

        def noted_step(state, batch):
            number, views = int(state['step']) + 1, rows_here(batch['view'])
            note(file, 'step', number=number, views=views, examples=rows_here(batch['index']))
            time.sleep(float(os.environ.get('STEP_SECONDS', '0')))
            return step(state, batch)

        self._step = noted_step

    def noted_save(self, state, step, *rest):
        note(file, 'save', number=step)
        save(self, state, step, *rest)

    def noted(items):
        for item in items:
            note(file, 'evaluation')
            yield item

    mirror.EVERY = float(os.environ.get('COPY_SECONDS', mirror.EVERY))
    Stepper._compile, Checkpoints.save = noted_compile, noted_save
    Batches.held_out = lambda self: noted(held_out(self))
    Batches.held_out_pictures = lambda self: noted(pictures(self))  # of segmentation


if __name__ == '__main__':
    patch(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    sys.argv = ['main.py', *sys.argv[2:]]
    runpy.run_path(str(Path(__file__).parents[2] / 'main.py'), run_name='__main__')
