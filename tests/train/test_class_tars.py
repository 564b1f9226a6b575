"""Training from tars of tars is training from the folder of the same pictures, bit for bit."""

from pathlib import Path
import shutil

import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from tests import tiny
from tests.class_tars import class_tars, tar
from tests.photos import write_photos
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures('one_device')


def test_the_same_run_as_from_the_folder(tmp_path, tokenizer_dir, monkeypatch):
    """Parameters and metrics; the one from the tar of tars is stopped, and goes on."""
    folder = tmp_path / 'images'
    for i, photo in enumerate(write_photos(folder / 'all')):
        (folder / f'n{i % 3}').mkdir(exist_ok=True)
        shutil.move(photo, folder / f'n{i % 3}')
    (folder / 'all').rmdir()
    tars = class_tars(folder, tmp_path / 'tars')
    whole = tar(tmp_path / 'train.tar', tars)

    def train(name: str, path: Path) -> int:
        data = {'name': name, 'path': str(path), 'evaluate_path': str(path)}
        settings = tiny.settings(tokenizer_dir, data=data, total_steps=3, evaluate_every=3)
        return loop.train(task_config(settings), tmp_path / f'run of {path.name}')

    with monkeypatch.context() as patch:
        patch.setattr(Stop, 'asked', lambda self, step: step == 2)
        assert train('class_tars', whole) == loop.STOPPED
    assert train('class_tars', whole) == train('class_tars', tars) == train('folder', folder) == 0
    for path in (tars, whole):
        assert_same_run(tmp_path / f'run of {path.name}', tmp_path / 'run of images')
