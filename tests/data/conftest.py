"""Folders of photographs: a good one, and one with bad files."""

import shutil

from PIL import Image
import pytest

from beit_jax.data.sources.folder import FolderSource
from tests.photos import write_photos


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """Eight photographs in two classes."""
    path = tmp_path_factory.mktemp('good')
    for i, photo in enumerate(write_photos(path / 'all')):
        (path / f'{i % 2}').mkdir(exist_ok=True)
        shutil.move(photo, path / f'{i % 2}' / photo.name)
    (path / 'all').rmdir()
    return FolderSource(str(path))


@pytest.fixture
def spoiled(good, tmp_path):
    """The good folder and four bad files, whose names begin with x, y and z: twelve in all."""
    path = tmp_path / 'spoiled'
    shutil.copytree(good.path, path)
    jpeg = (path / '0' / good.name(0).rpartition('/')[2]).read_bytes()
    (path / '0' / 'x_truncated.jpg').write_bytes(jpeg[: int(0.9 * len(jpeg))])
    (path / '1' / 'x_text.jpg').write_text('not a picture')
    (path / '1' / 'y_empty.png').write_bytes(b'')
    Image.new('RGB', (1, 1)).save(path / '1' / 'z_pixel.png')
    return FolderSource(str(path))


@pytest.fixture
def bad(spoiled):
    """The indices of the bad files."""
    names = [spoiled.name(i).rpartition('/')[2] for i in range(len(spoiled))]
    return {i for i, name in enumerate(names) if name[0] in 'xyz'}
