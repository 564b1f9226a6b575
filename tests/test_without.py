"""The step runs where neither TensorFlow nor ml_collections is installed (a bare accelerator
machine)."""

from tests import tiny

PROGRAM = """
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'ml_collections'):
    sys.modules[name] = None
import numpy as np
from beit_jax.settings.run import MeshConfig
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train import state as states
from beit_jax.train import optimizer, sharding, step
from tests import tiny
task = make_task(task_config(tiny.settings(sys.argv[1])))
schedule = optimizer.learning_rate(task.config.optimizer, 5, 1)
rule = optimizer.make_optimizer(task.config.optimizer, schedule, states.abstract_params(task))
mesh = sharding.make_mesh(MeshConfig())
views = task.views + task.prepare_views
batch = {view.name: np.zeros((8, view.size, view.size, 3), np.uint8) for view in views}
batch |= {'valid': np.ones(8, np.float32), 'substituted': np.zeros(8, bool)}
batch |= {'view': np.arange(8, dtype=np.uint32), 'grey': np.full(8, 0.4, np.float32)}
batch = sharding.put_batch(mesh, batch, 8)
batch |= step.make_prepare(task, mesh, train=True)(task.frozen, batch)
state = states.initial_state(task, rule, mesh, states.initial_params(task, 0))
state, metrics = step.make_train_step(task, rule, schedule, mesh, 5)(state, batch)
print(float(metrics['loss']))
"""


def test_step_without_tensorflow(tokenizer_dir):
    done = tiny.run(['-c', PROGRAM, str(tokenizer_dir)])
    assert done.returncode == 0, done.stderr
    assert 2 < float(done.stdout) < 4  # about log(17)
