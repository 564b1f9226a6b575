"""Labels that are no single class, out of tables beside pictures and of Parquet files."""

import csv
import json

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import label_shape
from beit_jax.errors import RequestError
from tests.data import batches, files

PICTURES = ('a.png', 'sub/b.png', 'c.png', 'd.png', 'e.png')
NAMES = ('ant', 'bee', 'cat')
MARKS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
TEXTS = ('cat|ant', '', ' bee', 'ant; bee', 'cat')


def folder(path, rows, head=('file_name', 'labels'), pictures=PICTURES) -> str:
    files.write(path, *pictures)
    with (path / 'metadata.csv').open('w', newline='') as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


def lines(path, rows) -> str:
    files.write(path, *PICTURES)
    (path / 'metadata.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def labels_of(source) -> np.ndarray:
    """In the order of `PICTURES`."""
    order = {source.name(i).split('/')[-1]: source.label(i) for i in range(len(source))}
    return np.stack([order[name.split('/')[-1]] for name in PICTURES])


def data(path, labels='classes', **more) -> DataConfig:
    return DataConfig(path=path, labels=labels, **more)


def test_a_table_of_names(tmp_path):
    """Rows in any order; the same from CSV and JSON, and from 0 and 1 in columns."""
    rows = [*zip(PICTURES, TEXTS)]
    source = open_source(data(folder(tmp_path / 'csv', rows[::-1])), 'train')
    assert source.class_names == NAMES and label_shape(source) == (3,)
    np.testing.assert_array_equal(labels_of(source), MARKS)
    assert source.label(0).dtype == np.float32
    assert all(example.label.shape == (3,) for example in source.read_many(0, 5))
    listed = [
        {'file_name': name, 'tags': [NAMES[i] for i in np.flatnonzero(row)], 'more': 1}
        for name, row in zip(PICTURES, MARKS)
    ]
    path = lines(tmp_path / 'json', listed)
    other = open_source(data(path, label_field='tags'), 'train')
    np.testing.assert_array_equal(labels_of(other), MARKS)
    columns = [(name, *row) for name, row in zip(PICTURES, MARKS)]
    marked = open_source(data(folder(tmp_path / 'marks', columns, ('file_name', *NAMES))), 'train')
    np.testing.assert_array_equal(labels_of(marked), MARKS)
    assert marked.class_names == NAMES


def test_other_labels_are_other_data(tmp_path):
    prints = set()
    for name, texts in {'a': TEXTS, 'b': TEXTS, 'c': ('cat', *TEXTS[1:])}.items():
        rows = [*zip(PICTURES, texts)]
        prints.add(open_source(data(folder(tmp_path / name, rows)), 'train').fingerprint)
    assert len(prints) == 2


def test_one_class_each(tmp_path):
    """With a column that is named, folders are no classes."""
    rows = [*zip(PICTURES, ('bee', 'ant', 'cat', 'ant', 'bee'))]
    path = folder(tmp_path / 'train', rows)
    source = open_source(data(path, 'class', label_field='labels'), 'train')
    assert source.class_names == NAMES
    assert labels_of(source).tolist() == [1, 0, 2, 0, 1] and label_shape(source) == ()
    with pytest.raises(RequestError, match=r"has the class 'dog', which the training images"):
        held_out = folder(tmp_path / 'held', [(name, 'dog') for name in PICTURES])
        both = data(path, 'class', label_field='labels', evaluate_path=held_out)
        open_source(both, 'evaluate')


def test_held_out_pictures_count_their_classes_as_the_training_ones(tmp_path):
    train = folder(tmp_path / 'train', [*zip(PICTURES, TEXTS)])
    held_out = folder(tmp_path / 'held', [(name, 'bee') for name in PICTURES])
    both = data(train, evaluate_path=held_out)
    np.testing.assert_array_equal(labels_of(open_source(both, 'evaluate')), [[0, 1, 0]] * 5)
    marks = ('file_name', 'cat', 'bee', 'ant')
    other = folder(tmp_path / 'marks', [(name, 1, 0, 0) for name in PICTURES], marks)
    train = folder(
        tmp_path / 'first', [(n, *row) for n, row in zip(PICTURES, MARKS)], ('file_name', *NAMES)
    )
    both = data(train, evaluate_path=other)
    np.testing.assert_array_equal(labels_of(open_source(both, 'evaluate')), [[0, 0, 1]] * 5)


def test_numbers(tmp_path):
    values = np.array([[1.5, -2], [3, 1e3], [0, 0], [-1, 7], [2, 11]])
    rows = [(name, 'text', *row) for name, row in zip(PICTURES, values)]
    path = folder(tmp_path / 'csv', rows, ('file_name', 'note', 'age', 'height'))
    source = open_source(data(path, 'numbers', label_field='age, height'), 'train')
    np.testing.assert_array_equal(labels_of(source), values)
    assert source.class_names == ('age', 'height')
    held = open_source(data(path, 'numbers', label_field='age', holdout=0.4), 'evaluate')
    assert len(held) == 2 and label_shape(held) == (1,)


@pytest.mark.parametrize(
    'rows, changed, message',
    [
        (TEXTS[:4], {}, r"no row for 1 of 5 pictures, 'e.png' the first: add rows"),
        ((*TEXTS, 'ant'), {}, r"rows for 1 pictures that are not there, 'f.png'"),
        (TEXTS, {'label_field': 'tags'}, r"no column 'tags': set config.data.label_field to one"),
        (('cat|ant|bee',) * 5, {}, r'every example is of all 3 classes'),
        (TEXTS, {'labels': 'numbers'}, r"a.png: the column 'labels' holds 'cat|ant', not 1 number"),
        (('nan', *TEXTS[1:]), {'labels': 'numbers'}, r"holds 'nan', not 1 numbers"),
        (TEXTS, {'labels': 'several'}, r"config.data.labels='several' is unknown. Allowed: class,"),
        (
            TEXTS,
            {'labels_per_class': 2},
            r'or parquet, labels_per_class=0',
        ),
        (TEXTS, {'name': 'tfds'}, r'labels=classes takes name=folder or parquet'),
        (TEXTS, {'labels': 'class', 'label_field': 'labels'}, r'sub/b.png has no class: fill'),
    ],
)
def test_bad_tables(rows, changed, message, tmp_path):
    path = folder(tmp_path, [*zip((*PICTURES, 'f.png'), rows)])
    with pytest.raises(RequestError, match=message):
        open_source(DataConfig(**{'path': path, 'labels': 'classes'} | changed), 'train')


@pytest.mark.parametrize(
    'text, message',
    [
        ('file_name,ant,bee\na.png,1,2\n', r"the column 'bee' holds '2', neither 0 nor 1"),
        ('name,labels\na.png,ant\n', r"has no column 'file_name'"),
        ('file_name,labels\na.png,ant,bee\n', r'row 1 has 3 cells, the head has 2'),
        ('file_name,labels\na.png,ant\na.png,bee\n', r"'a.png' has several rows"),
        ('file_name,labels\n,ant\n', r'row 1 has no file_name'),
        (b'\xff\xfe', r'its table cannot be read'),
    ],
)
def test_bad_lines(text, message, tmp_path):
    files.write(tmp_path, 'a.png')
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / 'metadata.csv').write_bytes(content)
    with pytest.raises(RequestError, match=message):
        open_source(data(str(tmp_path)), 'train')


def test_bad_json_and_no_table(tmp_path):
    path = files.write(tmp_path, 'a.png')
    with pytest.raises(RequestError, match=r'holds neither metadata.csv nor metadata.jsonl: give'):
        open_source(data(path), 'train')
    for text, message in (('{"file_name": ', 'line 1 is no JSON'), ('3', 'line 1 is no JSON obj')):
        (tmp_path / 'metadata.jsonl').write_text(text)
        with pytest.raises(RequestError, match=message):
            open_source(data(path), 'train')
    (tmp_path / 'metadata.csv').write_text('')
    with pytest.raises(RequestError, match=r'holds metadata.csv and metadata.jsonl: give one'):
        open_source(data(path), 'train')


def table(tmp_path, columns, features=None) -> str:
    images = pa.array([b'1', b'22', b'333', b'4444', b'5'])
    whole = pa.table({'image': images} | columns)
    text = json.dumps({'info': {'features': features or {}}})
    whole = whole.replace_schema_metadata({'huggingface': text})
    tmp_path.mkdir(exist_ok=True)
    for number, start in enumerate((0, 3)):
        parquet.write_table(
            whole.slice(start, 3 - start // 3),
            tmp_path / f'train-{number}.parquet',
            row_group_size=2,
        )
    return str(tmp_path)


IDS = pa.array([np.flatnonzero(row).tolist() for row in MARKS], pa.list_(pa.int64()))
CLASSES = {'feature': {'names': NAMES, '_type': 'ClassLabel'}, '_type': 'List'}


@pytest.mark.parametrize(
    'columns, features, names',
    [
        ({'label': IDS}, {'label': CLASSES}, NAMES),
        ({'label': IDS}, None, ('0', '1', '2')),
        ({'labels': pa.array(MARKS.tolist())}, {'labels': CLASSES}, NAMES),
        ({'labels': pa.array(MARKS.astype(bool).tolist())}, None, ('0', '1', '2')),
        ({name: pa.array(MARKS[:, i]) for i, name in enumerate(NAMES)}, None, NAMES),
    ],
    ids=['numbers', 'no names', 'marks', 'booleans', 'columns'],
)
def test_parquet(columns, features, names, tmp_path):
    """Lists of numbers of classes, or of 0 and 1 for each, or columns."""
    path = table(tmp_path, columns, features)
    source = open_source(data(path, name='parquet'), 'train')
    assert source.class_names == names and label_shape(source) == (3,)
    np.testing.assert_array_equal([source.label(i) for i in range(5)], MARKS)
    assert [len(example.image) for example in source.read_many(0, 5)] == [1, 2, 3, 4, 1]


def test_numbers_of_parquet(tmp_path):
    values = np.arange(10.0).reshape(5, 2) / 7
    path = table(tmp_path, {'box': pa.array(values.tolist()), 'note': pa.array(list('abcde'))})
    source = open_source(data(path, 'numbers', name='parquet', label_field='box'), 'train')
    found = np.stack([source.label(i) for i in range(5)])
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert source.class_names == ('box_0', 'box_1')


@pytest.mark.parametrize(
    'column, message',
    [
        (pa.array([0, 1, 2, 0, 1]), r'one class and no list \(config.data.labels=class is for'),
        (pa.array([[0, 1]] * 5), r'every example is of all 2 classes'),
        (pa.array([[0], [1], [-1], [], [2]]), r"holds '-1', no class: there are 3"),
        (pa.array([[0.5], [1], [1], [0], [2]]), r"holds '\[0.5\]', no names or numbers"),
    ],
)
def test_bad_columns(column, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        open_source(data(table(tmp_path, {'label': column}), name='parquet'), 'train')


def test_held_out_numbers_beyond_the_classes(tmp_path):
    train = table(tmp_path / 'train', {'label': IDS})
    held = table(tmp_path / 'held', {'label': pa.array([[0], [3], [], [1, 0], [2]])})
    both = data(train, name='parquet', evaluate_path=held, evaluate_split='train')
    with pytest.raises(RequestError, match=r"train-0.parquet:1: .* holds '3', no class"):
        open_source(both, 'evaluate')


def test_a_list_of_classes_is_no_class(tmp_path):
    path = table(tmp_path, {'label': IDS})
    with pytest.raises(RequestError, match=r'config.data.labels=classes'):
        open_source(data(path, 'class', name='parquet'), 'train')


def test_labels_in_batches(tmp_path):
    """float32 [R, C], of the example that is there, whatever order and chunks."""
    path = folder(tmp_path, [*zip(PICTURES, TEXTS)])
    for number, name in enumerate(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 83, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    source = open_source(data(path), 'train')
    (tmp_path / 'c.png').write_bytes(b'no picture')
    for batch in batches.train(source, 2):
        assert batch['label'].dtype == np.float32
        np.testing.assert_array_equal(
            batch['label'], [source.label(index) for index in batch['used']]
        )
