"""Data sets with label maps that TFDS prepared, as scene_parse150 is."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from beit_jax.data.config import SegmentDataConfig
from beit_jax.data.pipeline import segmentation_examples
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import RequestError
from tests.data.batches import train
from tests.data.pairs import SIZES, VIEWS, pair, write_pairs
from tests.tools.test_check_data import check

pytest.importorskip('tensorflow')  # which TFDS writes records by


class _Scenes(tfds.core.GeneratorBasedBuilder):
    """JPEG files and grey PNG files, which TFDS copies."""

    __module__ = 'scenes'  # see test_tfrecords.py
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, path, names=('image', 'annotation'), **kwargs):
        self.path, self.names = path, names
        super().__init__(**kwargs)

    def _info(self):
        forms = {
            name: tfds.features.Image(encoding_format=form)
            for name, form in zip(self.names, ('jpeg', 'png', 'png'))
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(forms))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(6), 'test': self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            files = [f'{self.path}/images/{i}.jpg', *[f'{self.path}/annotations/{i}.png'] * 2]
            yield i, dict(zip(self.names, files))


@pytest.fixture
def folder(tmp_path):
    """Six pairs, whose annotations count from 1."""
    return Path(write_pairs(tmp_path / 'folder', 6, offset=1))


@pytest.fixture
def settings(folder, tmp_path):
    """The data set of these pairs under the names of its features."""

    def prepare(*names):
        builder = _Scenes(data_dir=tmp_path / '-'.join(names), path=folder, names=names)
        config = tfds.download.DownloadConfig(verify_ssl=False)
        builder.download_and_prepare(download_config=config)
        return SegmentDataConfig(
            name='tfds', path=str(builder.data_path), evaluate_split='test', reduce_zero_label=True
        )

    return prepare


def test_records(settings, folder):
    config = settings('image', 'annotation')
    source = open_source(config, 'train')
    assert len(source) == 6 and len(source.class_names) == 150
    assert len(open_source(config, 'evaluate')) == 3
    numbers = {(folder / 'images' / f'{i}.jpg').read_bytes(): i for i in range(6)}
    for index, example in enumerate(source.read_many(0, 6)):
        number = numbers.pop(example.image)
        assert example.label == (folder / 'annotations' / f'{number}.png').read_bytes()
        assert example == source.read(index)
        ((_, _, label_map),) = segmentation_examples(source, config, [index])
        np.testing.assert_array_equal(label_map, pair(number, *SIZES[number])[1])


def test_a_value_that_is_no_class(settings):
    config = settings('image', 'annotation')
    (Path(config.path) / 'classes.txt').write_text('a\nb\n')
    source = open_source(config, 'train')
    words = (
        r'train.tfrecord.* has the value [345], but the 2 classes are 1 to 2 '
        r'\(0 and 255: ignored\)'
    )
    with pytest.raises(RequestError, match=words):
        train(source, 1, config=config, views=VIEWS)


@pytest.mark.parametrize(
    'names, words',
    [
        (('image',), '0 label maps'),
        (('image', 'mask'), '0 label maps'),
        (('image', 'annotation', 'depth'), '2 image features'),
        (('image', 'annotation', 'segmentation_mask'), '2 label maps'),
    ],
)
def test_other_features(settings, names, words):
    with pytest.raises(RequestError, match=words):
        open_source(settings(*names), 'train')


def test_check_data(settings, folder, tmp_path, monkeypatch, capsys):
    """Says of it what it says of the folder of these pairs."""
    path = Path(settings('image', 'segmentation_mask').path)
    for place in path, folder:
        (place / 'classes.txt').write_text('a\nb\nc\nd\ne\nf\n')
    status, found = check(monkeypatch, tmp_path, '--data.path', path)
    assert status == 0 and found['examples'] == 6 and not found['corrupt']
    said = capsys.readouterr().out
    assert 'configs/segment_ade20k.py' in found['command'] and '--config.data.name=tfds' in said
    assert 'with config.data.reduce_zero_label=true no pixel has 1 of 6 classes: f' in said
    expected = check(monkeypatch, tmp_path, '--data.path', folder)[1]
    assert found['annotations'] == expected['annotations'] and expected['annotations']
