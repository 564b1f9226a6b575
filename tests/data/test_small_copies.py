"""Small copies of large pictures, against Pillow."""

import io
import os

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.small_copies import QUALITY, shorter_side, write_copies
from beit_jax.data.sources.folder import FolderSource
from beit_jax.errors import RequestError, StorageError

SIZES = {'b/1.png': (61, 47), 'a/2.jpg': (37, 83), 'a/1.png': (97, 53), 'b/small.png': (11, 13)}
SIDE = 23


@pytest.fixture
def pictures(tmp_path):
    folder, rng = tmp_path / 'pictures', np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        smooth.resize((width, height), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def copied(folder, output, size=SIDE, **settings):
    config = DataConfig(path=str(folder), workers=2, **settings)
    return write_copies(FolderSource(str(folder)), config, size, output)


def test_against_pillow(pictures, tmp_path):
    """Of each picture, in the order of the source: that of Pillow's Lanczos, as Pillow writes it;
    those that are small stay as large as they are."""
    done = copied(pictures, tmp_path / 'small')
    assert done == (4, 0, [])
    paths = sorted(path for path in (tmp_path / 'small').rglob('*.jpg'))
    assert [str(path.relative_to(tmp_path / 'small')) for path in paths] == [
        'a/00000000.jpg', 'a/00000001.jpg', 'b/00000002.jpg', 'b/00000003.jpg'
    ]  # fmt: skip
    for path, name in zip(paths, sorted(SIZES)):
        whole = Image.open(pictures / name).convert('RGB')
        if (shorter := min(whole.size)) > SIDE:
            shape = [round(side * SIDE / shorter) for side in whole.size]
            whole = whole.resize(shape, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        whole.save(file, 'JPEG', quality=QUALITY, subsampling=0)
        with Image.open(path) as found, Image.open(file) as expected:
            assert found.size == whole.size
            loss = lambda picture: np.abs(np.asarray(picture, int) - np.asarray(whole, int)).mean()
            # a level of difference in resizing rounds coefficients the other way
            assert loss(found) < 1.1 * loss(expected), name


def test_goes_on(pictures, tmp_path):
    """What was written is not written again, what is half of a file is."""
    copied(pictures, tmp_path / 'small')
    (tmp_path / 'small/a/00000000.jpg').unlink()
    kept = (tmp_path / 'small/b/00000003.jpg').stat()
    (tmp_path / 'small/a/.00000000.part').write_bytes(b'half')
    assert copied(pictures, tmp_path / 'small') == (1, 3, [])
    assert (tmp_path / 'small/b/00000003.jpg').stat() == kept
    assert len(FolderSource(str(tmp_path / 'small'))) == 4
    assert not (tmp_path / 'small/a/.00000000.part').exists()


def test_turned_as_exif_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 31, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    (tmp_path / 'camera').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'camera/1.jpg', quality=98, exif=exif)
    for turned, size in ((True, (19, 31)), (False, (31, 19))):
        copied(tmp_path / 'camera', tmp_path / str(turned), 19, exif=turned)
        with Image.open(tmp_path / str(turned) / '00000000.jpg') as found:
            assert found.size == size and not found.getexif()


def test_bad_pictures(pictures, tmp_path):
    (pictures / 'a/1.png').write_bytes(b'no picture')
    assert copied(pictures, tmp_path / 'small').bad == [0]
    (pictures / 'b/1.png').write_bytes(b'no picture')
    assert shorter_side(FolderSource(str(pictures))) == (37 + 11) // 2
    for name in SIZES:
        (pictures / name).write_bytes(b'no picture')
    with pytest.raises(RequestError, match='none of the 4 pictures can be read'):
        copied(pictures, tmp_path / 'others')
    assert shorter_side(FolderSource(str(pictures))) == 0


def test_pictures_that_go_away(pictures, tmp_path):
    source = FolderSource(str(pictures))
    for name in SIZES:
        os.remove(pictures / name)
    with pytest.raises(StorageError, match=r'4 pictures cannot be read, as .*1\.png'):
        write_copies(source, DataConfig(path=str(pictures)), SIDE, tmp_path / 'small')


def test_bad_requests(pictures, tmp_path):
    copied(pictures, tmp_path / 'small')
    with pytest.raises(RequestError, match='copies of other pictures, or of another size'):
        copied(pictures, tmp_path / 'small', 29)
    with pytest.raises(RequestError, match='is there already'):
        copied(pictures, pictures)
    with pytest.raises(RequestError, match='copies are RGB of 8 bits'):
        copied(pictures, tmp_path / 'others', channels=1)
