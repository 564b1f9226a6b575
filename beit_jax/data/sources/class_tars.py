"""ImageNet as it is downloaded: a tar of class tars (ILSVRC2012_img_train.tar), or a folder of them
(ImageNet-22k), read without unpacking."""

import os
import sys

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.folder import numbered, path_kind
from beit_jax.data.sources.source import Example
from beit_jax.data.sources.splits import digest
from beit_jax.data.stores import storage
from beit_jax.data.stores.class_tars import PACKED, ClassTars
from beit_jax.errors import check, of_storage, shown


class ClassTarsSource:
    """The pictures of a tar of tars, or of a folder of tars: in the order, with the classes and the
    fingerprint of a folder that has, for each tar, a folder of its pictures.

    `class_names`, `key`, `index` and `endings` are as of `FolderSource`. A tar without pictures is
    no class, and is named on stderr.

    Raises:
      RequestError: nothing there, compressed tars. See `ClassTars`.
    """

    def __init__(
        self,
        path: str,
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        endings: tuple[str, ...] = ENDINGS,
    ):
        check(bool(path), f'{key} is empty: set it to a tar of class tars, or a folder of them.')
        try:
            stamps = _stamps(path, key)
        except OSError as error:
            raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
        of = {
            'list': f'class tars {" ".join(endings)}',
            'path': path if storage.is_remote(path) else os.path.abspath(path),
            'tars': digest(stamps, stamps.values()),
        }
        sizes = {name: size for name, (size, _) in stamps.items()}
        self._tars = ClassTars(path, sizes, key, index, of, endings)
        self.fingerprint = self._tars.names.fingerprint
        where = f'{key}={path!r}'
        if empty := self._tars.empty:
            names = shown(', '.join(empty[:3]) + ', ...' * (len(empty) > 3))
            print(f'{where}: no picture in {len(empty)} tars, no classes: {names}', file=sys.stderr)
        self.class_names, self._labels = numbered(self._tars.classes, class_names, where)

    def __len__(self) -> int:
        return len(self._tars)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.repeat(self._labels, np.diff(self._tars.starts))

    def name(self, index: int) -> str:
        return self._tars.name(index)

    def file(self, index: int) -> str:
        """CLASS/NAME of example `index`."""
        return self._tars.names.file(index)

    def read(self, index: int) -> Example:
        return Example(self._tars.read(index), self.label(index))

    def label(self, index: int) -> int:
        return self._labels[self._tars.names.folder(index)]

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [
            image if isinstance(image, OSError) else Example(image, self.label(index))
            for index, image in enumerate(self._tars.read_many(start, stop), start)
        ]


def _stamps(path, key) -> dict[str, tuple[int, str]]:
    """{name: (size, what changes with it)} of the tars in a folder; of a tar itself the name ''."""
    kind = path_kind(path, key)
    check(
        bool(kind),
        f'{key}={path!r} does not exist: set it to a tar of class tars, or a folder of them.',
    )
    if kind == 'file':
        folder, name = os.path.split(path)
        return {'': storage.stamps(folder or '.', (name.lower(),))[name]}
    packed = [name for name, _ in storage.list_folder(path, PACKED)[1]]
    check(
        not packed,
        f'{key}={path!r}: {packed and packed[0]} is compressed, so that nothing in it can be '
        'found: gunzip all of them.',
    )
    stamps = storage.stamps(path, ('.tar',))
    check(bool(stamps), f'{key}={path!r} holds no .tar file: set it to the folder that does.')
    return stamps
