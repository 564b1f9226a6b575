"""What tools are given: the files of a folder in training's order, a file, an array; names."""

import io
import os
import tracemalloc

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.load import image_batches, load_images, whole_images
from beit_jax.data.sources.folder import FolderSource
from beit_jax.errors import RequestError
from tests.photos import write_photos

SIZE = 17


@pytest.fixture
def exact():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def test_photographs(tmp_path):
    paths = write_photos(tmp_path / 'photos')
    images, names = load_images(str(tmp_path / 'photos'), 23)
    assert images.shape == (len(paths), 23, 23, 3) and images.dtype == np.uint8
    assert names == sorted(map(str, paths))
    assert load_images(str(tmp_path / 'photos'), 23, limit=3)[1] == names[:3]
    crop = load_images(str(paths[0]), 23, crop=0.5)[0][0]
    with Image.open(paths[0]) as whole:
        assert whole.size == (500, 375)
        resized = whole.convert('RGB').resize((61, 46), Image.Resampling.BICUBIC)
        expected = np.asarray(resized.crop((19, 12, 42, 35)), int)
    assert np.abs(crop - expected).max() <= 2  # one resize rounds once


def test_a_folder_is_listed_as_training_lists_it(tmp_path):
    """Hidden files and folders, a folder named like a picture, linked class folders, links to
    parents, and the order."""
    root, elsewhere = tmp_path / 'set', tmp_path / 'elsewhere'
    for folder in (root / 'b' / 'deep', root / 'a.jpg', root / '.ipynb_checkpoints', elsewhere):
        folder.mkdir(parents=True)
        for name in ('z.JPG', '._z.jpg', 'notes.txt', 'y.png'):
            Image.new('RGB', (9, 9)).save(folder / name, 'PNG')
    Image.new('RGB', (9, 9)).save(root / 'b' / 'late.png')
    (root / 'linked').symlink_to(elsewhere)
    (root / 'b' / 'loop').symlink_to('..')
    _, names = load_images(str(root), 9)
    source = FolderSource(str(root))
    assert names == [source.name(i) for i in range(len(source))]
    below = ['a.jpg/y.png', 'a.jpg/z.JPG', 'b/late.png', 'b/deep/y.png', 'b/deep/z.JPG']
    assert names == [f'{root}/{name}' for name in (*below, 'linked/y.png', 'linked/z.JPG')]
    with pytest.raises(RequestError, match=r'--images=.*/gone: no such file or folder'):
        load_images(str(root / 'gone'), 9)
    (root / 'empty').mkdir()
    with pytest.raises(RequestError, match=r'--images=.*holds no image: looked for .jpg'):
        load_images(str(root / 'empty'), 9)


def test_names_that_are_not_unicode(tmp_path):
    """They can be printed and written; the file is found all the same."""
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    folder.mkdir()
    Image.new('RGB', (9, 9), 'red').save(folder / os.fsdecode(b'\xff.png'))
    images, names = load_images(str(tmp_path), 9)
    assert names == [f'{tmp_path}/caf\\xe9/\\xff.png'] and images[0, 0, 0].tolist() == [255, 0, 0]
    (folder / os.fsdecode(b'\xff.png')).write_text('text')
    for path, words in (
        (folder, r'caf\\xe9/\\xff.png cannot be read as an image'),
        (folder / os.fsdecode(b'\xfe'), r'caf\\xe9/\\xfe: no such file or folder'),
    ):
        with pytest.raises(RequestError, match=words) as error:
            load_images(str(path), 9)
        str(error.value).encode()


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ('pipe.jpg', 'pipe.npy'):
        os.mkfifo(tmp_path / name)
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(RequestError, match=r'a pipe or device|no such file'):
                load_images(str(path), 9)


def test_an_array_of_bytes(tmp_path, exact):
    path = str(tmp_path / 'exact.npy')
    np.save(path, exact)
    for crop in (1.0, 0.5):
        images, names = load_images(path, SIZE, crop=crop)
        np.testing.assert_array_equal(images, exact)
    assert names == [f'exact.npy[{i}]' for i in range(3)]
    small = Image.fromarray(exact[2]).resize((11, 11), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load_images(path, 11)[0][2], small)


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', '>f4'])
def test_an_array_of_floats_is_taken_as_it_is(tmp_path, dtype):
    """Not rounded to bytes, also where it is resized."""
    path = str(tmp_path / 'float.npy')
    pixels = np.random.default_rng(0).random((3, SIZE, SIZE, 3)).astype(dtype)
    np.save(path, pixels)
    for crop in (1.0, 0.5):
        images = load_images(path, SIZE, crop=crop)[0]
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, pixels.astype(np.float32))
    (batch, names), *_ = image_batches(path, 11, 2)
    assert batch.shape == (2, 11, 11, 3) and batch.dtype == np.float32 and len(names) == 2
    channel = Image.fromarray(pixels[1, ..., 2].astype(np.float32))
    expected = channel.resize((11, 11), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(batch[1, ..., 2], np.clip(expected, 0, 1))
    assert [image.dtype for image, _ in whole_images(path, 1)] == [np.float32]


def header(shape, dtype='<f4'):
    """A .npy file of a few bytes that says it is of that shape."""
    file, text = io.BytesIO(), f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n"
    file.write(b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode() + bytes(99))
    return file.getvalue()


def test_files_that_are_no_arrays_of_pictures(tmp_path, exact):
    """One line each, and no memory for what a header promises."""
    saved = {
        'from 0 to 255': exact.astype(np.float32),
        'from nan to nan': np.full((1, 2, 2, 3), np.nan),
        r'has shape \(3, 17, 17\)': exact[..., 0],
        r'has shape \(\)': np.float32(0.5),
        r'has shape \(0, 17, 17, 3\)': exact[:0],
        'int64; give uint8': exact.astype(np.int64),
        'datetime64': exact.astype('M8[s]'),
        '<U3': exact.astype(str),
        'complex64': exact.astype('c8'),
        'bool': exact > 0,
    }
    files = {}
    for words, array in saved.items():
        np.save(tmp_path / 'x.npy', array)
        files[words] = (tmp_path / 'x.npy').read_bytes()
    npz, objects = io.BytesIO(), io.BytesIO()
    np.savez(npz, exact)
    np.save(objects, np.array([{}]), allow_pickle=True)
    cannot = 'cannot be read as an array of numbers'
    unreadable = [b'', b'no array', npz.getvalue(), objects.getvalue()]
    unreadable += [header(shape) for shape in (f'({10**12}, 2, 2, 3)', f'({10**60}, 2, 2, 3)')]
    unreadable += [header(shape) for shape in ('(-1, 2, 2, 3)', "('a',)", '(', '9' * 5000)]
    unreadable += [header('(' * 3000), header('(1, 2, 2, 3)', '|O'), header('(1, 2, 2, 3)')[:-60]]
    tracemalloc.start()
    for words, content in [*files.items(), *((cannot, content) for content in unreadable)]:
        (tmp_path / 'x.npy').write_bytes(content)
        with pytest.raises(RequestError, match=words) as error:
            load_images(str(tmp_path / 'x.npy'), SIZE)
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
