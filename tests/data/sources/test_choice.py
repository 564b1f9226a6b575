"""Which source the settings name, and what of it is held out."""

import subprocess
import sys

import numpy as np
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.folder import FolderSource
from beit_jax.errors import RequestError
from tests.data.files import write


def test_a_share_is_held_out(tmp_path):
    path = write(tmp_path, *(f'{i % 2}/{i:02}.jpg' for i in range(23)))
    config, whole = DataConfig(path=path, holdout=0.2), FolderSource(path)
    train, evaluate = open_source(config, 'train'), open_source(config, 'evaluate')
    assert (len(train), len(evaluate)) == (18, 5) and evaluate.class_names == ('0', '1')
    names = [source.name(i) for source in (train, evaluate) for i in range(len(source))]
    assert sorted(names) == [whole.name(i) for i in range(23)]
    assert len({whole.fingerprint, train.fingerprint, evaluate.fingerprint}) == 3
    assert open_source(DataConfig(path=path), 'evaluate') is None


def test_shapes():
    config = DataConfig(name='shapes', num_examples=11, num_evaluate_examples=5, image_size=37)
    train, evaluate = open_source(config, 'train'), open_source(config, 'evaluate')
    assert (len(train), len(evaluate)) == (11, 5) and train.fingerprint != evaluate.fingerprint
    image, label = train.read(10)
    assert image.shape == (37, 37, 3) and image.dtype == np.uint8
    assert 0 <= label < len(train.class_names)
    assert open_source(DataConfig(name='shapes', num_evaluate_examples=0), 'evaluate') is None


@pytest.mark.parametrize('name', ['path', 'evaluate_path'])
def test_shapes_read_no_folder(name):
    config = DataConfig(name='shapes', **{name: '/imagenet'})
    with pytest.raises(RequestError, match=rf"config.data.{name}='/imagenet' is not read where"):
        open_source(config, 'train')


def test_no_tensorflow():
    code = (
        'import sys; from beit_jax.data import config, sampler; from beit_jax.data.pictures import '
        'label_maps; from beit_jax.data.sources import choice, chunks, shapes; assert "tensorflow" '
        'not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
