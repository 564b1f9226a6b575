"""A folder of images and one of annotations beside it, as ADE20K is published."""

import hashlib
import os

import numpy as np

from beit_jax.data.config import ENDINGS, IGNORED
from beit_jax.data.pictures import label_values
from beit_jax.data.sources.folder import FolderSource, path_kind
from beit_jax.data.sources.source import Example, or_error
from beit_jax.data.stores import storage
from beit_jax.data.stores.listing import Listing
from beit_jax.errors import check, of_storage, shown

TRAINING, VALIDATION = 'training', 'validation'  # ADE20K's parts
_LIST, _TABLE = 'classes.txt', 'objectInfo150.txt'  # what may name the classes
_ANNOTATIONS = ('.png', '.tif', '.tiff', '.bmp', '.gif')  # lossless


class AnnotatedFolder:
    """The images below `images` with the annotations of the same names below `annotations`, in
    `path`; a label is an annotation's file, with the values that classes.txt gives the classes.

    Where `images` is divided into `training` and `validation`, `annotations` is too, and `part`
    says which it is. The classes are those of `class_names`, else of `path`: see `read_classes`.
    `key`, `index` and `endings` are as of `FolderSource`.

    Attributes:
      parts: `training` and `validation`, if they are there.
      images: the pictures alone.

    Raises:
      RequestError: not such a folder, an image without annotation.
    """

    def __init__(
        self,
        path: str,
        part: str,
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        endings: tuple[str, ...] = ENDINGS,
    ):
        check(bool(path), f'{key} is empty: set it to a folder that holds images and annotations.')
        for name in ('images', 'annotations'):
            check(
                path_kind(storage.join(path, name), key) == 'folder',
                f'{key}={path!r} holds no folder {name!r}: set it to one that holds images '
                'and annotations, both of them with training and validation, or neither.',
            )
        self.parts = tuple(
            name
            for name in (TRAINING, VALIDATION)
            if path_kind(storage.join(path, 'images', name), key) == 'folder'
        )
        check(
            not self.parts or part in self.parts,
            f'{key}={path!r} holds images/{"".join(self.parts)}, but no images/{part}.',
        )
        part = part if self.parts else ''
        self.images = FolderSource(storage.join(path, 'images', part), (), key, index, endings)
        self._folder = storage.join(path, 'annotations', part)
        annotations = Listing(self._folder, key, index)
        fingerprints = self.images.fingerprint + annotations.fingerprint
        self.fingerprint = hashlib.sha256(fingerprints.encode()).hexdigest()
        own_names, self._values = read_classes(path, key)
        self.class_names = own_names if class_names is None else class_names
        there = dict(map(os.path.splitext, map(annotations.file, range(len(annotations)))))
        there = {stem: end for stem, end in there.items() if end.lower() in _ANNOTATIONS}
        found = [there.get(self._stem(i), '') for i in range(len(self))]
        self._endings = np.array(found)
        missing = [i for i, ending in enumerate(found) if not ending]
        check(
            not missing,
            f'{len(missing)} of {len(self)} images have no annotation; the first is '
            f'{missing and self.name(missing[0])}, whose annotation would be '
            f'{missing and shown(self.annotation(missing[0]))}.png: add or remove files.',
        )

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def annotation(self, index: int) -> str:
        """Where the annotation of example `index` is stored."""
        return storage.join(self._folder, f'{self._stem(index)}{self._endings[index]}')

    def _stem(self, index):
        """The path of example `index` below the two folders, without its ending."""
        return os.path.splitext(self.images.file(index)[len(self.images.path) :].lstrip('/'))[0]

    def read(self, index: int) -> Example:
        image = storage.read(self.images.file(index))
        label = storage.read(self.annotation(index))
        return Example(image, label_values.Coded(label, self._values) if self._values else label)

    def label(self, index: int) -> int:
        raise NotImplementedError

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


def read_classes(
    path: str, key: str = 'config.data.path'
) -> tuple[tuple[str, ...], label_values.Values | None]:
    """The classes of label maps, and which values are theirs (None: their numbers): the lines of
    classes.txt in `path` (see `label_values.parse`), or those of ADE20K's objectInfo150.txt; else
    '1' to '150'."""
    try:
        there = {name for name, _ in storage.list_folder(path, ('.txt',))[1]}
        given = [name for name in (_LIST, _TABLE) if name in there]
        if not given:
            return tuple(str(number) for number in range(1, 151)), None
        file = storage.join(path, given[0])
        lines = storage.read(file).decode(errors='replace').splitlines()
    except OSError as error:
        raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
    if given[0] == _TABLE:  # without its head, whose last column are the names
        names, values = tuple(line.split('\t')[-1].strip() for line in lines[1:] if line), None
    else:
        names, values = label_values.parse(lines, file)
    check(
        0 < len(names) <= IGNORED,
        f'{file} has {len(names)} classes: there may be 1 to {IGNORED}.',
    )
    return names, values
