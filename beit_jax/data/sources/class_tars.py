"""ImageNet as it is downloaded: a tar of class tars (ILSVRC2012_img_train.tar), or a folder of them
(ImageNet-22k), read without unpacking."""

import os
import sys

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.folder import numbered, path_kind
from beit_jax.data.sources.splits import PARTS, digest
from beit_jax.data.sources.stored import StoredSource
from beit_jax.data.stores import storage
from beit_jax.data.stores.class_tars import ClassTars, Placed
from beit_jax.data.stores.tar_file import refuse_packed
from beit_jax.errors import check, of_storage, shown


class PlacedSource(StoredSource):
    """Pictures in tars, in the order, with the classes and the fingerprint of a folder that has a
    folder a class. `class_names` and `where` are as of `numbered`."""

    def __init__(self, tars: Placed, class_names: tuple[str, ...] | None, where: str):
        super().__init__(tars)
        self.fingerprint = tars.names.fingerprint
        self.class_names, self._labels = numbered(tars.classes, class_names, where)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.repeat(self._labels, np.diff(self._shards.starts))

    def label(self, index: int) -> int:
        return self._labels[self._shards.names.folder(index)]

    def file(self, index: int) -> str:
        """CLASS/NAME of example `index`."""
        return self._shards.names.file(index)


class ClassTarsSource(PlacedSource):
    """The pictures of a tar of tars, or of a folder of tars, of which each is a class.

    `class_names`, `key`, `index` and `endings` are as of `FolderSource`. A tar without pictures is
    no class, and is named on stderr.

    Raises:
      RequestError: nothing there, compressed tars, tars that are parts of a set. See `ClassTars`.
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
        tars = ClassTars(path, sizes, key, index, of, endings)
        if tars.empty:
            names = shown(', '.join(tars.empty[:3]) + ', ...' * (len(tars.empty) > 3))
            told = f'no picture in {len(tars.empty)} tars, no classes: {names}'
            print(f'{key}={path!r}: {told}', file=sys.stderr)
        super().__init__(tars, class_names, f'{key}={path!r}')


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
    refuse_packed(path, f'{key}={path!r}')
    stamps = storage.stamps(path, ('.tar',))
    check(bool(stamps), f'{key}={path!r} holds no .tar file: set it to the folder that does.')
    check(
        len(stamps) < 2 or not PARTS.issuperset(name[:-4].lower() for name in stamps),
        f'{key}={path!r} holds {shown(", ".join(stamps))}, parts of a set, no classes: set it to '
        'that of training where it holds class tars, else unpack each, and set it to that folder.',
    )
    return stamps
