"""The step runs where neither TensorFlow nor ml_collections is installed (a bare accelerator
machine); every task trains without TensorFlow, and learns what it learns with it, bit for bit.
PyTorch, where it is installed, is never loaded."""

import shutil

import pytest

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


# as where TensorFlow is not installed: for all that looks for it, as TFDS does
WITHOUT = """
import importlib.machinery, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name == 'tensorflow' else super().find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""
RUNS = """
import sys
from pathlib import Path
import beit_jax.main
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from tests import tiny
data, tokenizer, runs = Path(sys.argv[1]), *sys.argv[2:]
few = {'total_steps': 3, 'evaluate_every': 3, 'save_every': 3}
photos = {'name': 'folder', 'path': f'{data}/photos', 'max_bad_share': 0.5, 'holdout': 0.2}
splits = {'evaluate_split': 'test'}
records = {'name': 'tfds', 'path': str(next(data.glob('records/*/1.0.0')))} | splits
pairs = {'name': 'folder', 'path': f'{data}/pairs', 'holdout': 0.2}
for name, settings in (
    ('pretrain', tiny.settings(tokenizer, **few, data=photos)),
    ('classify', tiny.classify_settings(**few, data=records)),
    ('segment', tiny.segment_settings(**few, data=pairs)),
):
    assert loop.train(task_config(settings), Path(runs) / name) == 0
print(*(name in sys.modules for name in ('tensorflow', 'torch')))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Photographs, one PNG and one CMYK among them, a PNG that is damaged, a JPEG that is read all
    the same; records of PNG files; pictures with label maps."""
    pytest.importorskip('tensorflow')
    from tests.data.pairs import write_pairs
    from tests.data.sources.test_tfrecords import prepare
    from tests.photos import write_photos

    root = tmp_path_factory.mktemp('data')
    photos = write_photos(root / 'photos')
    png = next(path for path in photos if path.suffix == '.png')
    for copy in range(3):
        shutil.copy(png, png.with_stem(f'copy_{copy}'))
    (root / 'photos' / 'cut.png').write_bytes(png.read_bytes()[:9999])
    whole = photos[0].read_bytes()
    (root / 'photos' / 'more.jpg').write_bytes(whole[:-2] + bytes(9) + whole[-2:])
    prepare(root / 'records')
    write_pairs(root / 'pairs', 11)
    return root


@pytest.mark.once
def test_trains_without_tensorflow(data, tokenizer_dir, tmp_path):
    from tests.train.test_resume import assert_same_run

    for name, program, loaded in (('with', RUNS, True), ('without', WITHOUT + RUNS, False)):
        arguments = [str(data), str(tokenizer_dir), str(tmp_path / name)]
        done = tiny.run(['-c', program, *arguments], timeout=550)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f'{loaded} False'
    for task in ('pretrain', 'classify', 'segment'):
        assert_same_run(tmp_path / 'without' / task, tmp_path / 'with' / task)


def test_what_takes_tensorflow_says_so(tokenizer_dir, tmp_path):
    program = WITHOUT + "import runpy; runpy.run_path('main.py', run_name='__main__')"
    command = tiny.arguments(tmp_path, tokenizer_dir, data={'image_ops': 'tensorflow'})[1:]
    done = tiny.run(['-c', program, *command])
    assert done.returncode == 2, done.stderr
    expected = "image_ops=tensorflow takes TensorFlow (No module named 'tensorflow'): install requi"
    assert expected in done.stderr and 'Traceback' not in done.stderr
