"""main.py, noting where it is and what it consumes, so that a test can end it at a chosen moment
and compare what was learned from.

    python -m tests.train.noted_run NOTES --config=... --workdir=...

NOTES gets a JSON line for each phase (compile, step, evaluation, save) as it begins; that of a step
has the numbers of its views and the examples that the sampler asked for. STEP_SECONDS in the
environment makes steps last longer.
"""

import json
import os
from pathlib import Path
import runpy
import sys
import time

from beit_jax.train import loop
from beit_jax.train.checkpoint import Checkpoints
from beit_jax.train.run import Run


def note(file: int, phase: str, **what) -> None:
    os.write(file, (json.dumps({'phase': phase, **what}) + '\n').encode())


def patch(file: int) -> None:
    compile_step, save, evaluation = loop._compile, Checkpoints.save, Run.evaluation_batches

    def noted_compile(train_step, state, batch, stop):
        note(file, 'compile')
        step, line = compile_step(train_step, state, batch, stop)

        def noted_step(state, batch):
            mine = lambda name: [
                int(x)
                for shard in sorted(
                    batch[name].addressable_shards, key=lambda shard: shard.index[0].start or 0
                )
                for x in shard.data
            ]
            note(
                file,
                'step',
                number=int(state['step']) + 1,
                views=mine('view'),
                examples=mine('index'),
            )
            time.sleep(float(os.environ.get('STEP_SECONDS', '0')))
            return step(state, batch)

        return noted_step, line

    def noted_save(self, state, step, *rest):
        note(file, 'save', number=step)
        save(self, state, step, *rest)

    def noted_evaluation(self, *arguments):
        for batch in evaluation(self, *arguments):
            note(file, 'evaluation')
            yield batch

    loop._compile, Checkpoints.save, Run.evaluation_batches = (
        noted_compile,
        noted_save,
        noted_evaluation,
    )


if __name__ == '__main__':
    patch(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    sys.argv = ['main.py', *sys.argv[2:]]
    runpy.run_path(str(Path(__file__).parents[2] / 'main.py'), run_name='__main__')
