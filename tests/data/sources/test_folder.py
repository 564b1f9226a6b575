"""A folder of images: which files and classes it has, what it refuses."""

import hashlib
import os
import unicodedata

import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.folder import FolderSource
from beit_jax.errors import RequestError
from tests.data.files import write


def test_classes(tmp_path):
    files = 'b/z.JPG', 'a/deep/y.jpeg', 'a/x.png'
    others = 'a/.hidden.png', '.git/no.png', 'a/notes.txt', 'c/none.svg'
    path = write(tmp_path, *files, *others)
    source = FolderSource(path)
    names = [source.name(i) for i in range(len(source))]
    assert names == [f'{path}/a/x.png', f'{path}/a/deep/y.jpeg', f'{path}/b/z.JPG']
    assert source.class_names == ('a', 'b')
    assert [source.read(i) for i in range(3)] == [(b'\2\2\2', 0), (b'\1\1', 0), (b'\0', 1)]
    listed = b'a/x.png\t3\na/deep/y.jpeg\t2\nb/z.JPG\t1\n'
    assert source.fingerprint == hashlib.sha256(listed).hexdigest()


def test_no_classes(tmp_path):
    source = FolderSource(write(tmp_path, 'q.jpg', 'p.jpg', 'sub/r.jpg'))
    assert source.class_names == () and [source.read(i).label for i in range(3)] == [0, 0, 0]


def test_fingerprint_follows_names_and_sizes_only(tmp_path):
    one = FolderSource(write(tmp_path / '1', 'a.jpg', 'b.jpg'))
    two = FolderSource(write(tmp_path / '2', 'a.jpg', 'b.jpg'))
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


def test_names_that_are_not_unicode(tmp_path):
    """Shown as they can be printed; classes are counted in the order in which they are stored."""
    folders = ['a', 'z', os.fsdecode(b'b\xff'), 'b!']
    source = FolderSource(write(tmp_path, *(f'{folder}/x.jpg' for folder in folders)))
    assert source.class_names == ('a', 'b!', r'b\xff', 'z')
    assert [source.read(i) for i in range(4)] == [
        (b'\0', 0),
        (b'\3' * 4, 1),
        (b'\2' * 3, 2),
        (b'\1\1', 3),
    ]
    assert [source.name(i) for i in (0, 2)] == [f'{tmp_path}/a/x.jpg', rf'{tmp_path}/b\xff/x.jpg']
    config = DataConfig(path=str(tmp_path), evaluate_path=str(tmp_path))
    assert open_source(config, 'evaluate').label(2) == 2


def test_read_many(tmp_path):
    """As `read` one by one, with the error in its place."""
    source = FolderSource(write(tmp_path, *(f'{i:02}.jpg' for i in range(13))))
    (tmp_path / '04.jpg').unlink()
    many = source.read_many(2, 11)
    assert isinstance(many.pop(2), OSError)
    expected = [bytes([i] * (i + 1)) for i in (2, 3, *range(5, 11))]
    assert [example.image for example in many] == expected


@pytest.mark.parametrize(
    'path, words',
    [
        ('', 'is empty'),
        ('missing', 'does not exist'),
        ('file', 'is a file'),
        ('bare', '.jpg, .jpeg, .jfif, .jpe, .png, .webp'),
    ],
)
def test_bad_paths(tmp_path, path, words):
    write(tmp_path, 'file', 'bare/x.txt')
    with pytest.raises(RequestError, match=r'config.data.path') as error:
        open_source(DataConfig(path=path and str(tmp_path / path)), 'train')
    assert words in str(error.value)
    write(tmp_path, 'good/a.jpg')
    if path:
        config = DataConfig(path=str(tmp_path / 'good'), evaluate_path=str(tmp_path / path))
        with pytest.raises(RequestError, match=r'config.data.evaluate_path'):
            open_source(config, 'evaluate')


def test_evaluation_folder_counts_classes_as_training_does(tmp_path):
    train = write(tmp_path / 'train', 'cat/1.jpg', 'dog/1.jpg', 'eel/1.jpg')

    def evaluation(name, *files):
        config = DataConfig(path=train, evaluate_path=write(tmp_path / name, *files))
        return open_source(config, 'evaluate')

    source = evaluation('few', 'eel/2.jpg', 'dog/2.jpg')
    assert source.class_names == ('cat', 'dog', 'eel')
    assert [source.read(i).label for i in range(2)] == [1, 2]
    with pytest.raises(RequestError, match=r"evaluate_path.*'fox'"):
        evaluation('other', 'fox/1.jpg')
    with pytest.raises(RequestError, match=r'evaluate_path.*outside class folders'):
        evaluation('flat', '1.jpg')


def test_accents_of_two_systems(tmp_path):
    """Folders of macOS, whose accents are letters of their own, are those of another system; two
    that a system tells apart stay two."""
    forms = [unicodedata.normalize(form, 'B\u00e4r') for form in ('NFC', 'NFD')]
    for ours, theirs in (forms, forms[::-1]):
        write(tmp_path / ours / 'train', f'{ours}/1.jpg', 'Zebra/1.jpg')
        write(tmp_path / ours / 'held', f'{theirs}/1.jpg', 'Zebra/1.jpg')
        train = FolderSource(str(tmp_path / ours / 'train'))
        held = FolderSource(str(tmp_path / ours / 'held'), train.class_names)
        labels = [
            {held.name(i).split('/')[-2]: held.label(i) for i in range(2)}[name]
            for name in (theirs, 'Zebra')
        ]
        assert train.class_names == held.class_names == (ours, 'Zebra') and labels == [0, 1]
    both = FolderSource(write(tmp_path / 'both', *(f'{name}/1.jpg' for name in forms)))
    again = FolderSource(str(tmp_path / 'both'), both.class_names)
    assert len(both.class_names) == 2 and [again.label(i) for i in range(2)] == [0, 1]
