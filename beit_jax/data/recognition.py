"""What kind of data lies at a path, by the names of a few files."""

import itertools
import os

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.stores import storage
from beit_jax.data.stores.tar_file import PACKED, members, reading
from beit_jax.errors import RequestError, check, of_storage, shown

_TAR, _TABLES, _ARRAY = '.tar', ('.parquet', '.arrow'), '.npy'
_SAVED = {'state.json', 'dataset_dict.json'}  # by the library `datasets`
_LOOKED_AT = 64  # members of a tar


def kind_of(path: str, key: str, rgb: bool = True) -> str:
    """Which of `config.SOURCES` the data at `path` are; 'folder' where nothing else is recognised.
    rgb: whether they are meant to be RGB of 8 bits.

    Raises:
      RequestError, which names the option `key`: a folder or tar that cannot be read, or one of
        arrays, which are not `rgb`.
    """
    try:
        if path.endswith(PACKED):
            return 'class_tars'  # which says what to do
        if path.endswith(_TABLES):
            return 'parquet'
        if path.endswith(_TAR):
            return _kind_of_tar(path, key) if storage.kind(path) == 'file' else 'webdataset'
        if storage.kind(path) != 'folder':
            return 'folder'
        return _kind_of_folder(path, key, rgb)
    except OSError as error:
        raise of_storage(error, f'{key}={shown(path)!r} cannot be read ({error}).') from error


def _kind_of_folder(path, key, rgb):
    folders, files = storage.list_folder(path)
    names = [name for name, _ in files]
    if {'dataset_info.json', 'features.json'} <= set(names):
        return 'tfds'
    tars = [name for name in names if name.endswith((_TAR, *PACKED))]
    if tars and '_info.json' not in names and tars[0].endswith(_TAR):
        return _kind_of_tar(storage.join(path, tars[0]), key)
    if tars:
        return 'webdataset'
    inside = [name for name in ('data', 'train') if name in folders]
    tables = [storage.list_folder(storage.join(path, name), _TABLES)[1] for name in inside]
    if _SAVED & set(names) or any(name.endswith(_TABLES) for name in names) or any(tables):
        return 'parquet'
    arrays = [name for name in names if name.endswith(_ARRAY)]
    if rgb and arrays and not folders and not any(name.lower().endswith(ENDINGS) for name in names):
        _refuse_arrays(path, arrays, key)
    return 'folder'


def _kind_of_tar(path, key):
    """Tars of pictures alone are a class each, and what has labels beside them is WebDataset's."""
    with reading(path, f'{key}={shown(path)!r}') as file:
        found = members(file, 0, file.seek(0, os.SEEK_END))
        names = [member.name.lower() for member in itertools.islice(found, _LOOKED_AT)]
    return 'class_tars' if all(name.endswith((*ENDINGS, _TAR)) for name in names) else 'webdataset'


def _refuse_arrays(path, names, key):
    """Says which settings the arrays of a folder take."""
    try:
        first = np.load(storage.join(path, names[0]), mmap_mode='r', allow_pickle=False)
    except ValueError as error:
        raise RequestError(
            f'{key}={shown(path)!r}: {names[0]} cannot be read as an array ({error}).'
        ) from error
    channels, bits = first.shape[2] if first.ndim == 3 else 1, 8 * first.itemsize
    advice = f'give --data.channels {channels} --data.bits {bits}'
    if (channels, bits) == (3, 8):
        advice = 'give --data.bands 0 1 2'
    if first.dtype not in (np.uint8, np.uint16):
        advice = 'save each as uint8 or uint16, [H, W, channels] or [H, W]'
    check(
        False,
        f'{key}={shown(path)!r} holds {len(names)} {_ARRAY} arrays (the first is {first.dtype} '
        f'{list(first.shape)}): {advice}.',
    )
