from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from beit_jax.data.config import DataConfig
from beit_jax.data.sources import open_source
from beit_jax.data.tfrecords import TfdsSource
from beit_jax.errors import RequestError

COUNTS = {'train': 23, 'test': 5}


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """Greyscale or RGB pictures with or without labels, stored as `encoding`, or no picture at all."""
    __module__ = 'pictures'  # within a package, TFDS would ask for importlib_resources, on which it does not depend
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, encoding='png', channels=3, labelled=True, **kwargs):
        self.encoding, self.channels, self.labelled = encoding, channels, labelled
        super().__init__(**kwargs)

    def _info(self):
        features = {'id': tfds.features.Scalar(np.int64)}
        if self.encoding:
            features['picture'] = tfds.features.Image(shape=(None, None, self.channels), encoding_format=self.encoding)
        if self.labelled:
            features['label'] = tfds.features.ClassLabel(names=['ant', 'bee', 'cat'])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        rng = np.random.default_rng(len(split))
        for i in range(COUNTS[split]):
            example = {'id': i, 'label': i % 3, 'picture': rng.integers(0, 256, [11 + i, 13, self.channels], np.uint8)}
            yield i, {key: example[key] for key in self.info.features}


def prepare(tmp_path, **kwargs):
    builder = _Pictures(data_dir=tmp_path, **kwargs)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3, verify_ssl=False))
    return builder, str(builder.data_path)


@pytest.mark.parametrize('encoding, channels, labelled', [('png', 3, True), ('jpeg', 3, True), ('png', 1, False)])
def test_agrees_with_tfds(tmp_path, encoding, channels, labelled):
    builder, path = prepare(tmp_path, encoding=encoding, channels=channels, labelled=labelled)
    for split, count in COUNTS.items():
        reference = builder.as_dataset(split=split, shuffle_files=False, decoders={'picture': tfds.decode.SkipDecoding()})
        expected = list(reference.as_numpy_iterator())
        source = open_source(DataConfig(name='tfds', path=path, split=split), 'train')
        assert len(source) == len(expected) == count
        assert source.class_names == (('ant', 'bee', 'cat') if labelled else ())
        for index in np.random.default_rng(0).permutation(count):  # in any order
            image, label = source.read(index)
            assert image == expected[index]['picture'] and label == expected[index].get('label', 0)
            assert tf.io.decode_image(image).shape == (11 + expected[index]['id'], 13, channels)


def test_names_splits_and_fingerprints(tmp_path):
    _, path = prepare(tmp_path)
    train, test = TfdsSource(path, 'train'), open_source(DataConfig(name='tfds', path=path, evaluate_split='test'), 'evaluate')
    assert len(test) == 5 and train.fingerprint == TfdsSource(path, 'train').fingerprint != test.fingerprint
    names = [train.name(i) for i in range(23)]
    assert len(set(names)) == 23 and len({name.partition(':')[0] for name in names}) == 3
    assert names[0].endswith('.tfrecord-00000-of-00003:0') and names[-1].split('-')[-1].startswith('00003:')
    held_out = open_source(DataConfig(name='tfds', path=path, holdout=0.2), 'evaluate')
    assert len(held_out) == 5 and held_out.class_names == ('ant', 'bee', 'cat')


def test_bad_requests(tmp_path):
    _, path = prepare(tmp_path / 'good')
    with pytest.raises(RequestError, match=r'train, test|test, train'):
        TfdsSource(path, 'validation')
    with pytest.raises(RequestError, match=r'config.data.path is empty'):
        TfdsSource('')
    with pytest.raises(RequestError, match=r'config.data.path=.*dataset_info.json'):
        TfdsSource(str(tmp_path))
    with pytest.raises(RequestError, match=r'0 image features .*label'):
        TfdsSource(prepare(tmp_path / 'none', encoding=None)[1])


def test_damaged_shards(tmp_path):
    _, path = prepare(tmp_path)
    source = TfdsSource(path)
    shard = Path(source.name(22).partition(':')[0])
    data = shard.read_bytes()
    shard.write_bytes(data[:-5])
    with pytest.raises(RequestError, match=r'00002-of-00003.*damaged'):
        TfdsSource(path)
    shard.write_bytes(data.replace(b'picture', b'\xff' * 7))  # no message any more; its frame still holds
    with pytest.raises(OSError, match=r'00002-of-00003:.*damaged'):
        TfdsSource(path).read(22)
