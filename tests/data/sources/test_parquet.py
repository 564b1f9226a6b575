"""Parquet files laid out as on the Hugging Face hub, and folders of Arrow files: read as pyarrow
reads them, in any order, and as the folder of the same pictures; others are refused."""

import concurrent.futures
import json

import fsspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.parquet import ParquetSource
from beit_jax.data.stores import tables
from beit_jax.errors import RequestError
from tests.data import batches

COUNT, ROWS, GROUP = 23, 11, 3
KIND = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
NAMES = ('ant', 'bee', 'cat', 'dog', 'eel')


def table(images, labels, names=NAMES, image='image', label='label', kind=KIND) -> pa.Table:
    features = {image: {'_type': 'Image'}, label: {'names': names, '_type': 'ClassLabel'}}
    metadata = {'huggingface': json.dumps({'info': {'features': features}})} if names else {}
    if kind == KIND:
        images = [{'bytes': each, 'path': None} for each in images]
    columns = {image: pa.array(images, kind), label: pa.array(labels, pa.int64())}
    return pa.table(columns).replace_schema_metadata(metadata)


def numbered(count=COUNT):
    return [bytes(range(i + 1)) for i in range(count)], [i % 5 for i in range(count)]


def write(folder, whole: pa.Table, split='train', compression='snappy') -> str:
    """Files of ROWS rows, in groups of GROUP."""
    (folder / 'data').mkdir(parents=True, exist_ok=True)
    parts = range(0, len(whole), ROWS)
    for number, start in enumerate(parts):
        path = folder / 'data' / f'{split}-{number:05}-of-{len(parts):05}.parquet'
        part = whole.slice(start, ROWS)
        parquet.write_table(part, path, row_group_size=GROUP, compression=compression)
    return str(folder)


@pytest.mark.parametrize('compression', ['none', 'snappy', 'zstd'])
def test_reads_what_was_written(tmp_path, compression):
    images, labels = numbered()
    path = write(tmp_path, table(images, labels), compression=compression)
    source = open_source(DataConfig(name='parquet', path=path), 'train')
    assert len(source) == COUNT and source.class_names == NAMES
    for i in np.random.default_rng(0).permutation(COUNT):
        assert source.read(i) == (images[i], labels[i]) and source.label(i) == labels[i]
        assert source.name(i).endswith(f'/train-{i // ROWS:05}-of-00003.parquet:{i % ROWS}')
    assert source.read_many(2, COUNT) == list(zip(images, labels))[2:]
    here = ParquetSource(f'{path}/data')
    assert here.fingerprint == source.fingerprint
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(source.read, [i % COUNT for i in range(500)]))
    assert examples == [(images[i % COUNT], labels[i % COUNT]) for i in range(500)]


@pytest.mark.parametrize('kind', [pa.binary(), pa.large_binary()])
def test_other_columns(tmp_path, kind):
    images, labels = numbered()
    path = write(tmp_path, table(images, labels, (), 'photo', 'kind', kind))
    with pytest.raises(RequestError, match=r"no column 'image'.*image_field to one of photo, kind"):
        ParquetSource(path)
    config = DataConfig(name='parquet', path=path, image_field='photo')
    plain = open_source(config, 'train')
    assert plain.class_names == () and plain.read(7) == (images[7], 0)
    config = DataConfig(name='parquet', path=path, image_field='photo', label_field='kind')
    source = open_source(config, 'train')
    assert source.class_names == tuple('01234') and source.read(7) == (images[7], 2)
    for fields, message in (
        ({'image': 'kind'}, r"column 'kind' is int64, not binary.*photo, kind"),
        ({'image': 'photo', 'label': 'klass'}, r"no column 'klass'.*label_field to .*photo, kind"),
        ({'image': 'photo', 'label': 'photo'}, r"column 'photo' is .*binary, no whole number"),
    ):
        with pytest.raises(RequestError, match=message):
            ParquetSource(path, **fields)


def test_the_same_batches_as_from_the_folder(good, tmp_path):
    labels = [good.label(i) for i in range(len(good))]
    images = [good.read(i).image for i in range(len(good))]
    source = ParquetSource(write(tmp_path, table(images, labels, good.class_names)))
    assert source.class_names == good.class_names
    batches.assert_equal(batches.train(source, 3), batches.train(good, 3))


def test_splits(tmp_path):
    images, labels = numbered()
    path = write(tmp_path, table(images, labels))
    write(tmp_path, table(images[:5], labels[:5]), 'validation')
    config = DataConfig(name='parquet', path=path, evaluate_split='validation')
    assert len(open_source(config, 'train')) == COUNT
    held_out = open_source(config, 'evaluate')
    assert len(held_out) == 5 and held_out.class_names == NAMES
    assert len(open_source(DataConfig(name='parquet', path=path, holdout=0.2), 'evaluate')) == 5
    with pytest.raises(RequestError, match="of the split 'test': it has train, validation"):
        ParquetSource(path, 'test')


def saved(folder, whole: pa.Table) -> str:
    """As `datasets` saves: Arrow streams, and a file that says in which order."""
    folder.mkdir(parents=True)
    names = [f'data-{number:05}-of-00003.arrow' for number in range(3)]
    for number, name in enumerate(names):
        part = whole.slice(number * ROWS, ROWS)
        with pa.ipc.new_stream(folder / name, part.schema) as writer:
            writer.write_table(part, max_chunksize=GROUP)
    state = {'_data_files': [{'filename': name} for name in names]}
    (folder / 'state.json').write_text(json.dumps(state))
    return str(folder)


def test_a_saved_data_set(tmp_path):
    images, labels = numbered()
    saved(tmp_path / 'set' / 'train', table(images, labels))
    source = ParquetSource(str(tmp_path / 'set'))
    assert source.class_names == NAMES
    assert source.read_many(0, COUNT) == list(zip(images, labels))
    assert source.read(17) == (images[17], labels[17])
    assert ParquetSource(str(tmp_path / 'set' / 'train')).fingerprint == source.fingerprint


def test_images_beside_the_table(tmp_path):
    (tmp_path / 'data' / 'photos').mkdir(parents=True)
    (tmp_path / 'data' / 'photos' / 'a.jpg').write_bytes(b'abc')
    paths = ('photos/a.jpg', 'photos/b.jpg', None, '../../etc/passwd', '/etc/passwd')
    rows = pa.array([{'bytes': None, 'path': path} for path in paths], KIND)
    source = ParquetSource(write(tmp_path, pa.table({'image': rows})))
    assert source.read(0) == (b'abc', 0)
    for index, message in ((1, 'b.jpg'), (2, 'no image'), (3, 'leads out'), (4, 'leads out')):
        with pytest.raises(OSError, match=message):
            source.read(index)


def test_damage(tmp_path):
    images, labels = numbered()
    images = [image * 500 for image in images]
    path = write(tmp_path, table(images, labels), compression='none')
    source, file = ParquetSource(path), tmp_path / 'data' / 'train-00001-of-00003.parquet'
    whole = file.read_bytes()
    at = whole.find(images[ROWS + 4]) - 5  # the length before it
    file.write_bytes(whole[:at] + b'\xff' * 5 + whole[at + 5 :])
    many = ParquetSource(path).read_many(0, COUNT)
    bad = [i for i, each in enumerate(many) if isinstance(each, OSError)]
    assert bad and set(bad) <= set(range(ROWS + 3, ROWS + 6))  # its group
    assert [each.image for i, each in enumerate(many) if i not in bad] == [
        image for i, image in enumerate(images) if i not in bad
    ]
    for content in (whole[:-20], whole[:100], b'', b'no table' * 99):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r'00001-of-00003.* cannot be read'):
            ParquetSource(path)
    file.unlink()
    with pytest.raises(RequestError, match=r'has no \.parquet or \.arrow file'):
        ParquetSource(str(tmp_path / 'data' / '..' / '..'))
    broken = table(images, [None] * COUNT)
    with pytest.raises(RequestError, match="row 0 has no 'label'"):
        ParquetSource(write(tmp_path / 'broken', broken))
    assert source


def test_the_list_is_kept(tmp_path, monkeypatch):
    images, labels = numbered()
    path, index = write(tmp_path / 'set', table(images, labels)), str(tmp_path / 'index')
    made, looked, of = ParquetSource(path, index=index), [], tables._labels
    monkeypatch.setattr(tables, '_labels', lambda *what: looked.append(what) or of(*what))
    opened = ParquetSource(path, index=index)
    assert not looked and opened.fingerprint == made.fingerprint
    assert opened.read_many(0, COUNT) == made.read_many(0, COUNT)


def test_another_store(tmp_path):
    images, labels = numbered()
    path, remote = write(tmp_path, table(images, labels)), fsspec.filesystem('memory')
    remote.put(path, '/rows', recursive=True)
    here, there = ParquetSource(path), ParquetSource('memory://rows')
    assert there.fingerprint == here.fingerprint
    assert there.read_many(0, COUNT) == here.read_many(0, COUNT)
    remote.rm('/rows', recursive=True)
