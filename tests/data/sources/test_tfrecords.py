"""Data sets that TFDS prepared: read as TFDS reads them, in any order; damaged ones are refused."""

import concurrent.futures
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.tfrecords import TfdsSource
from beit_jax.data.stores import shards, storage
from beit_jax.errors import RequestError

tf = pytest.importorskip('tensorflow')  # which TFDS writes records by

COUNTS = {'train': 23, 'test': 5}


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """Greyscale or RGB pictures with or without labels, stored as `encoding`; None: no picture."""

    # within a package, TFDS would ask for importlib_resources, on which it does not depend
    __module__ = 'pictures'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, encoding='png', channels=3, labelled=True, **kwargs):
        self.encoding, self.channels, self.labelled = encoding, channels, labelled
        super().__init__(**kwargs)

    def _info(self):
        features = {'id': tfds.features.Scalar(np.int64)}
        if self.encoding:
            features['picture'] = tfds.features.Image(
                shape=(None, None, self.channels), encoding_format=self.encoding
            )
        if self.labelled:
            features['label'] = tfds.features.ClassLabel(names=['ant', 'bee', 'cat'])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        rng = np.random.default_rng(len(split))
        for i in range(COUNTS[split]):
            example = {
                'id': i,
                'label': i % 3,
                'picture': rng.integers(0, 256, [11 + i, 13, self.channels], np.uint8),
            }
            yield i, {key: example[key] for key in self.info.features}


def prepare(tmp_path, **kwargs):
    builder = _Pictures(data_dir=tmp_path, **kwargs)
    config = tfds.download.DownloadConfig(num_shards=3, verify_ssl=False)
    builder.download_and_prepare(download_config=config)
    return builder, str(builder.data_path)


@pytest.mark.parametrize(
    'encoding, channels, labelled, file_format',
    [
        ('png', 3, True, 'tfrecord'),
        ('jpeg', 3, True, 'array_record'),
        ('png', 1, False, 'tfrecord'),
    ],
)
def test_agrees_with_tfds(tmp_path, encoding, channels, labelled, file_format):
    builder, path = prepare(
        tmp_path, encoding=encoding, channels=channels, labelled=labelled, file_format=file_format
    )
    for split, count in COUNTS.items():
        decoders = {'picture': tfds.decode.SkipDecoding()}
        if file_format == 'array_record':
            expected = list(builder.as_data_source(split, decoders=decoders))
        else:
            dataset = builder.as_dataset(split=split, shuffle_files=False, decoders=decoders)
            expected = list(dataset.as_numpy_iterator())
        source = open_source(DataConfig(name='tfds', path=path, split=split), 'train')
        assert len(source) == len(expected) == count
        assert source.class_names == (('ant', 'bee', 'cat') if labelled else ())
        for index in np.random.default_rng(0).permutation(count):  # in any order
            image, label = source.read(index)
            assert image == expected[index]['picture'] and label == expected[index].get('label', 0)
            assert tf.io.decode_image(image).shape == (11 + expected[index]['id'], 13, channels)


def test_names_splits_and_fingerprints(tmp_path):
    _, path = prepare(tmp_path)
    train = TfdsSource(path, 'train')
    test = open_source(DataConfig(name='tfds', path=path, evaluate_split='test'), 'evaluate')
    assert len(test) == 5
    assert train.fingerprint == TfdsSource(path, 'train').fingerprint != test.fingerprint
    names = [train.name(i) for i in range(23)]
    assert len(set(names)) == 23 and len({name.partition(':')[0] for name in names}) == 3
    assert names[0].endswith('.tfrecord-00000-of-00003:0')
    assert names[-1].split('-')[-1].startswith('00003:')
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


def test_cut_or_foreign_shards(tmp_path):
    _, path = prepare(tmp_path)
    source = TfdsSource(path)
    shard = Path(source.name(22).partition(':')[0])
    data = shard.read_bytes()
    for damaged in (
        data[:-5],
        data[: len(data) // 2],
        data + data[-300:],
        data[:3] + b'\1' + data[4:],  # a length that is not so
    ):
        shard.write_bytes(damaged)
        with pytest.raises(RequestError, match=r'00002-of-00003.*damaged'):
            TfdsSource(path)
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for i in range(8):
            writer.write(b'no message%d' % i)  # its frame and its checksums hold
    with pytest.raises(OSError, match=r'00002-of-00003:.*damaged'):
        TfdsSource(path).read(22)
    shard.unlink()
    with pytest.raises(RequestError, match=r'00002-of-00003.*missing'):
        TfdsSource(path)


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_damaged_record_leaves_the_others(tmp_path, file_format):
    _, path = prepare(tmp_path, file_format=file_format)
    source = TfdsSource(path)
    images = [source.read(i).image for i in range(23)]
    shard = Path(source.name(10).partition(':')[0])
    data, at = shard.read_bytes(), shard.read_bytes().find(images[10][20:40])
    assert at > 0
    shard.write_bytes(data[:at] + b'?' + data[at + 1 :])
    source = TfdsSource(path)
    with pytest.raises(OSError, match=f'{shard.name}:.*is damaged'):
        source.read(10)
    many = source.read_many(0, 23)
    assert isinstance(many.pop(10), OSError)
    assert [example.image for example in many] == images[:10] + images[11:]
    shard.write_bytes(data[:100])
    if file_format == 'array_record':  # these are opened when they are read
        first = next(i for i in range(23) if source.name(i).startswith(str(shard)))
        with pytest.raises(OSError, match=f'{shard.name} is damaged: it has 0 records'):
            TfdsSource(path).read(first)


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_many_threads(tmp_path, file_format):
    source = TfdsSource(prepare(tmp_path, file_format=file_format)[1])
    expected = [source.read(i) for i in range(23)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(source.read, [i % 23 for i in range(1000)]))
    assert examples == [expected[i % 23] for i in range(1000)]


def test_many_side_by_side_are_one_read_of_each_shard(tmp_path, monkeypatch):
    source = TfdsSource(prepare(tmp_path)[1])
    expected, reads, ranges = [source.read(i) for i in range(23)], [], storage.ranges
    monkeypatch.setattr(storage, 'ranges', lambda path: reads.append(path) or ranges(path))
    assert source.read_many(2, 21) == expected[2:21] and len(reads) == 3
    assert source.read_many(3, 5) == expected[3:5] and len(reads) == 4
    assert source.read_many(5, 5) == []


def test_the_list_of_records_is_kept(tmp_path, monkeypatch):
    _, path = prepare(tmp_path / 'set')
    index, plain = str(tmp_path / 'index'), TfdsSource(path)
    lengths, scanned = shards._lengths, []
    monkeypatch.setattr(
        shards, '_lengths', lambda path, *rest: scanned.append(path) or lengths(path, *rest)
    )
    made = open_source(DataConfig(name='tfds', path=path, index=index), 'train')
    assert len(scanned) == 3
    config = DataConfig(name='tfds', path=path, index=index, holdout=0.2)
    opened = open_source(config, 'evaluate').source
    assert len(scanned) == 3 and made.fingerprint == opened.fingerprint == plain.fingerprint
    for i in range(23):
        assert plain.read(i) == made.read(i) == opened.read(i)
    assert len(TfdsSource(path, 'test', index)) == 5 and len(scanned) > 3  # a list of its own
    scanned.clear()
    shard = Path(plain.name(22).partition(':')[0])
    shard.write_bytes(shard.read_bytes()[:-5])  # another data set now
    with pytest.raises(RequestError, match=r'00002-of-00003.*damaged'):
        TfdsSource(path, index=index)
    assert str(shard) in scanned


def test_another_store(tmp_path):
    _, path = prepare(tmp_path / 'set')
    there, memory = f'memory://{tmp_path.name}/1.0.0', fsspec.filesystem('memory')
    memory.put(path, there, recursive=True)
    local, remote = TfdsSource(path), TfdsSource(there, index=str(tmp_path / 'index'))
    assert remote.fingerprint == local.fingerprint and remote.class_names == ('ant', 'bee', 'cat')
    assert remote.name(7) == local.name(7).replace(path, there)
    examples = [local.read(i) for i in range(23)]
    assert [remote.read(i) for i in range(23)] == examples == remote.read_many(0, 23)
    memory.rm(remote.name(22).rpartition(':')[0])
    with pytest.raises(OSError):
        remote.read(22)
    with pytest.raises(RequestError, match=r"shard 'memory://.*00002-of-00003' is missing"):
        TfdsSource(there)
    _, path = prepare(tmp_path / 'arrays', file_format='array_record')
    memory.put(path, there + '-arrays', recursive=True)
    with pytest.raises(RequestError, match=r'array_record, which is read from local files only'):
        TfdsSource(there + '-arrays')


def evil_features(name):
    """features.json in which the class `name` stands, in each way that TFDS would import it."""
    image = {'pythonClassName': name, 'image': {'shape': {}, 'dtype': 'uint8'}}
    outer = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
    old = {'type': name, 'content': {}}
    proto = {'features': {'picture': image}}
    return {
        'alone': image,
        'inside': {'pythonClassName': outer, 'featuresDict': proto},
        'by its other name': {'python_class_name': name, 'image': {}},
        'of before': {'type': outer, 'content': {'picture': old}},
        'as text': {
            'type': outer,
            'proto_cls': 'tensorflow_datasets.FeaturesDict',
            'content': ' ' + json.dumps(proto),
        },
        'as text inside': {
            'pythonClassName': outer,
            'jsonFeature': {'json': json.dumps({'picture': old})},
        },
    }


@pytest.mark.parametrize('way', evil_features(''))
def test_no_class_of_features_is_imported(way, tmp_path, monkeypatch):
    """The proof is a file that the module would write when it is imported."""
    _, path = prepare(tmp_path / 'set')
    proof, module = tmp_path / 'proof', tmp_path / f'evil_{tmp_path.name}.py'
    module.write_text(f'open({str(proof)!r}, "w").close()')
    monkeypatch.syspath_prepend(tmp_path)
    name = f'{module.stem}.Image'
    (Path(path) / 'features.json').write_text(json.dumps(evil_features(name)[way]))
    with pytest.raises(RequestError, match=rf"names '{name}', which is no feature of tensorflow_d"):
        TfdsSource(path)
    assert not proof.exists()
    with pytest.raises(Exception):  # noqa: B017  # the same folder does run under TFDS
        tfds.builder_from_directory(path)
    assert proof.exists()


def test_features_as_older_versions_wrote_them(tmp_path):
    _, path = prepare(tmp_path)
    of = 'tensorflow_datasets.core.features.'
    picture = {'shape': [None, None, 3], 'dtype': 'uint8', 'encoding_format': 'png'}
    features = {
        'id': {'type': f'{of}feature.Tensor', 'content': {'shape': [], 'dtype': 'int64'}},
        'label': {'type': f'{of}class_label_feature.ClassLabel', 'content': {'num_classes': 3}},
        'picture': {'type': f'{of}image_feature.Image', 'content': picture},
    }
    features['id']['content']['encoding'] = 'none'
    old = {'type': f'{of}features_dict.FeaturesDict', 'content': features}
    expected = TfdsSource(path)
    (Path(path) / 'features.json').write_text(json.dumps(old))
    found = TfdsSource(path)
    assert found.read(7) == expected.read(7) and found.class_names == ('ant', 'bee', 'cat')


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize(
    'text', ['', '{', '[]', '3', 'null', '{"a": NaN}', '[' * 99_999, '{"a":' * 9999, '\0' * 9]
)
def test_damaged_json(name, text, tmp_path):
    _, path = prepare(tmp_path)
    (Path(path) / name).write_text(text)
    with pytest.raises(
        RequestError, match=r'config.data.path=.*prepare the dataset again'
    ) as error:
        TfdsSource(path)
    assert len(str(error.value).splitlines()) == 1


def test_absurd_numbers_of_classes(tmp_path):
    _, path = prepare(tmp_path)
    file = Path(path) / 'features.json'
    file.write_text(file.read_text().replace('"numClasses": "3"', '"numClasses": "9999999999"'))
    (Path(path) / 'label.labels.txt').unlink()
    with pytest.raises(RequestError, match=r'claims 9,999,999,999 classes'):
        TfdsSource(path)


def test_a_damaged_template_of_file_names(tmp_path):
    _, path = prepare(tmp_path)
    file = Path(path) / 'dataset_info.json'
    info = json.loads(file.read_text())
    info['splits'][0]['filepathTemplate'] = '{DATASET}}-{SHARD_X_OF_Y}'
    file.write_text(json.dumps(info))
    with pytest.raises(RequestError, match=r'TFDS cannot read .*Single .}. encountered'):
        TfdsSource(path, info['splits'][0]['name'])
