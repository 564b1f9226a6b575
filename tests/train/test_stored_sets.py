"""Training from tars and tables is training from the folder of the same pictures, bit for bit."""

from pathlib import Path
import shutil

import pytest
import webdataset

from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.stores import tables
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from tests import tiny
from tests.class_tars import class_tars, tar
from tests.data.sources import test_parquet
from tests.photos import write_photos
from tests.train.test_mesh import assert_same_figures
from tests.train.test_resume import assert_same_run


@pytest.fixture
def stored(tmp_path):
    """{kind of source: paths of the same photographs}."""
    folder = tmp_path / 'images'
    for i, photo in enumerate(write_photos(folder / 'all')):
        (folder / f'n{i % 3}').mkdir(exist_ok=True)
        shutil.move(photo, folder / f'n{i % 3}')
    (folder / 'all').rmdir()
    tars = class_tars(folder, tmp_path / 'tars')
    source = FolderSource(str(folder))
    images, labels = zip(*source.read_many(0, len(source)))
    (tmp_path / 'shards').mkdir()
    with webdataset.ShardWriter(str(tmp_path / 'shards/part-%03d.tar'), 5, verbose=0) as writer:
        for i, (image, label) in enumerate(zip(images, labels)):
            writer.write({'__key__': f'{i:03}', 'jpg': image, 'cls': label})
    table = test_parquet.table(images, labels, source.class_names)
    return {
        'folder': (folder,),
        'class_tars': (tars, tar(tmp_path / 'train.tar', tars)),
        'webdataset': (tmp_path / 'shards',),
        'parquet': (
            Path(test_parquet.write(tmp_path / 'hub', table)),
            Path(test_parquet.saved(tmp_path / 'saved', table)),
        ),
    }


def data(name: str, path: Path) -> dict:
    both = {'name': name, 'path': str(path), 'evaluate_path': str(path)}
    return both | ({'evaluate_split': 'train'} if name in ('webdataset', 'parquet') else {})


@pytest.mark.once
@pytest.mark.usefixtures('one_device')
def test_the_same_run_as_from_the_folder(stored, tmp_path, tokenizer_dir, monkeypatch, capsys):
    """Parameters and metrics; each run is stopped after step 2, and goes on."""

    def train(name: str, path: Path) -> int:
        few = {'total_steps': 3, 'evaluate_every': 3, 'data': data(name, path)}
        settings = tiny.settings(tokenizer_dir, **few)
        return loop.train(task_config(settings), tmp_path / f'run of {path.name}')

    (folder,) = stored.pop('folder')
    assert train('folder', folder) == 0
    for name, path in ((name, path) for name, paths in stored.items() for path in paths):
        with monkeypatch.context() as patch:
            patch.setattr(Stop, 'asked', lambda self, step: step == 2)
            assert train(name, path) == loop.STOPPED
        assert train(name, path) == 0
        assert_same_run(tmp_path / f'run of {path.name}', tmp_path / 'run of images')
    assert 'warning:' not in capsys.readouterr().out
    monkeypatch.setattr(tables, '_KEPT', 2)  # groups of rows, of which there are more
    shutil.rmtree(tmp_path / 'run of hub')
    assert train('parquet', tmp_path / 'hub') == 0
    said = 'for each picture 3 are read, which lie in one row group: config.data.chunk=3'
    assert said in capsys.readouterr().out


@pytest.mark.once
@pytest.mark.parametrize(
    'name',
    ['webdataset', *(pytest.param(n, marks=pytest.mark.slow) for n in ('class_tars', 'parquet'))],
)
def test_two_processes_are_one(name, stored, tokenizer_dir, tmp_path):
    """Two that read it, each its own rows, against one that reads the folder."""
    few = {'total_steps': 3, 'evaluate_every': 3}
    of = lambda kind: few | {'data': data(kind, stored[kind][0])}
    pair = tiny.start_pair(tiny.arguments(tmp_path / 'pair', tokenizer_dir, **of(name)))
    one = tiny.arguments(tmp_path / 'one', tokenizer_dir, **of('folder'))
    done = tiny.run(one, JAX_NUM_CPU_DEVICES='2')
    assert done.returncode == 0, done.stderr
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert_same_figures(tmp_path / 'pair', tmp_path / 'one')
