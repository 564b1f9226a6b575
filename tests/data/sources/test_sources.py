import hashlib
import subprocess
import sys

import numpy as np
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.subset import Subset, holdout
from beit_jax.errors import RequestError


def write(root, *files):
    for i, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i] * (i + 1)))
    return str(root)


def test_folder_with_classes(tmp_path):
    path = write(
        tmp_path,
        'b/z.JPG',
        'a/deep/y.jpeg',
        'a/x.png',
        'a/.hidden.png',
        '.git/no.png',
        'a/notes.txt',
        'c/none.gif',
    )
    source = FolderSource(path)
    assert [source.name(i) for i in range(len(source))] == [
        f'{path}/a/x.png',
        f'{path}/a/deep/y.jpeg',
        f'{path}/b/z.JPG',
    ]
    assert source.class_names == ('a', 'b')
    assert [source.read(i) for i in range(3)] == [(b'\2\2\2', 0), (b'\1\1', 0), (b'\0', 1)]
    assert (
        source.fingerprint
        == hashlib.sha256(b'a/x.png\t3\na/deep/y.jpeg\t2\nb/z.JPG\t1\n').hexdigest()
    )


def test_flat_folder(tmp_path):
    source = FolderSource(write(tmp_path, 'q.jpg', 'p.jpg', 'sub/r.jpg'))
    assert source.class_names == () and [source.read(i).label for i in range(3)] == [0, 0, 0]


def test_fingerprint_follows_names_and_sizes_only(tmp_path):
    one, two = (
        FolderSource(write(tmp_path / '1', 'a.jpg', 'b.jpg')),
        FolderSource(write(tmp_path / '2', 'a.jpg', 'b.jpg')),
    )
    assert one.fingerprint == two.fingerprint
    assert FolderSource(write(tmp_path / '3', 'a.jpg', 'c.jpg')).fingerprint != one.fingerprint
    (tmp_path / '2' / 'a.jpg').write_bytes(b'longer')
    assert FolderSource(str(tmp_path / '2')).fingerprint != one.fingerprint


def test_broken_link_is_a_bad_record(tmp_path):
    write(tmp_path, 'a.jpg')
    (tmp_path / 'b.jpg').symlink_to(tmp_path / 'gone.jpg')
    source = FolderSource(str(tmp_path))
    assert len(source) == 2
    with pytest.raises(OSError):
        source.read(1)


def test_read_many(tmp_path):
    """As `read` one by one, with the error in its place; a subset asks the other source for its
    runs of neighbours."""
    source = FolderSource(write(tmp_path, *(f'{i:02}.jpg' for i in range(13))))
    (tmp_path / '04.jpg').unlink()
    many = source.read_many(2, 11)
    assert isinstance(many.pop(2), OSError)
    assert [example.image for example in many] == [
        bytes([i] * (i + 1)) for i in (2, 3, *range(5, 11))
    ]
    asked, read_many = [], source.read_many
    source.read_many = lambda *span: asked.append(span) or read_many(*span)
    subset = Subset(source, [0, 2, 3, 5, 6, 7, 12, 11])
    assert (
        subset.read_many(1, 8) == [source.read(i) for i in (2, 3, 5, 6, 7, 12, 11)]
        and subset.read_many(3, 3) == []
    )
    assert asked == [(2, 4), (5, 8), (12, 13), (11, 12)]


@pytest.mark.parametrize(
    'path, words',
    [
        ('', 'is empty'),
        ('missing', 'does not exist'),
        ('file', 'is a file'),
        ('bare', '.jpg, .jpeg, .png'),
    ],
)
def test_bad_paths(tmp_path, path, words):
    write(tmp_path, 'file', 'bare/x.txt')
    with pytest.raises(RequestError, match=r'config.data.path') as error:
        open_source(DataConfig(path=path and str(tmp_path / path)), 'train')
    assert words in str(error.value)
    write(tmp_path, 'good/a.jpg')
    if path:
        with pytest.raises(RequestError, match=r'config.data.evaluate_path'):
            open_source(
                DataConfig(path=str(tmp_path / 'good'), evaluate_path=str(tmp_path / path)),
                'evaluate',
            )


def test_evaluation_folder_counts_classes_as_training_does(tmp_path):
    train, few = (
        write(tmp_path / 'train', 'cat/1.jpg', 'dog/1.jpg', 'eel/1.jpg'),
        write(tmp_path / 'few', 'eel/2.jpg', 'dog/2.jpg'),
    )
    source = open_source(DataConfig(path=train, evaluate_path=few), 'evaluate')
    assert source.class_names == ('cat', 'dog', 'eel') and [
        source.read(i).label for i in range(2)
    ] == [1, 2]
    with pytest.raises(RequestError, match=r"evaluate_path.*'fox'"):
        open_source(
            DataConfig(path=train, evaluate_path=write(tmp_path / 'other', 'fox/1.jpg')), 'evaluate'
        )
    with pytest.raises(RequestError, match=r'evaluate_path.*outside class folders'):
        open_source(
            DataConfig(path=train, evaluate_path=write(tmp_path / 'flat', '1.jpg')), 'evaluate'
        )


@pytest.mark.parametrize(
    'num_examples, share, expected',
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.9, 1), (101, 0.1, 10), (101, 0.0, 0)],
)
def test_holdout(num_examples, share, expected):
    kept, held_out = holdout(num_examples, share)
    assert len(held_out) == expected
    np.testing.assert_array_equal(
        np.sort(np.concatenate([kept, held_out])), np.arange(num_examples)
    )
    if share == 0.1:
        # a resumed run must not train on what it held out
        assert held_out.tolist() == [15, 17, 32, 51, 57, 67, 70, 74, 76, 91]


def test_open_source_holds_out_a_share(tmp_path):
    config = DataConfig(
        path=write(tmp_path, *(f'{i % 2}/{i:02}.jpg' for i in range(23))), holdout=0.2
    )
    whole, train, evaluate = (
        FolderSource(config.path),
        open_source(config, 'train'),
        open_source(config, 'evaluate'),
    )
    assert (len(train), len(evaluate)) == (18, 5) and evaluate.class_names == ('0', '1')
    names = [source.name(i) for source in (train, evaluate) for i in range(len(source))]
    assert sorted(names) == [whole.name(i) for i in range(23)]
    assert len({whole.fingerprint, train.fingerprint, evaluate.fingerprint}) == 3
    assert open_source(DataConfig(path=config.path), 'evaluate') is None


def test_subset(tmp_path):
    subset = Subset(FolderSource(write(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')), [2, 0])
    assert len(subset) == 2 and subset.name(0).endswith('c.jpg') and subset.read(1) == (b'\0', 0)


def test_shapes():
    config = DataConfig(name='shapes', num_examples=11, num_evaluate_examples=5, image_size=37)
    train, evaluate = open_source(config, 'train'), open_source(config, 'evaluate')
    assert (len(train), len(evaluate)) == (11, 5) and train.fingerprint != evaluate.fingerprint
    image, label = train.read(10)
    assert (
        image.shape == (37, 37, 3)
        and image.dtype == np.uint8
        and 0 <= label < len(train.class_names)
    )
    assert open_source(DataConfig(name='shapes', num_evaluate_examples=0), 'evaluate') is None


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'lanes': 2}, 'lanes=2 is for chunks'),
        ({'chunk': -1}, 'chunk is -1'),
        ({'chunk': 5, 'window': 0}, 'window is 0'),
        ({'chunk': 5, 'repeat_views': 3}, 'chunk excludes'),
        ({'chunk': 5, 'repeated_augmentation': 3}, 'chunk excludes'),
        ({'chunk': 5, 'name': 'shapes'}, 'chunk is for stored images'),
        ({'index': 'gs://bucket'}, 'index=.* is not local'),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(RequestError, match=rf'config.data.{words}'):
        DataConfig(**settings)


def test_no_tensorflow():
    code = (
        'import sys; from beit_jax.data import config, sampler; from beit_jax.data.pictures import '
        'label_maps; from beit_jax.data.sources import choice, chunks, shapes; assert "tensorflow" '
        'not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
