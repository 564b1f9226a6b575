"""A folder of images and one of annotations beside it, as ADE20K is published."""

import hashlib

from beit_jax.data.config import IGNORED
from beit_jax.data.sources.folder import FolderSource, path_kind
from beit_jax.data.sources.source import Example, or_error
from beit_jax.data.stores import storage
from beit_jax.data.stores.listing import EXTENSIONS, Listing
from beit_jax.errors import check, of_storage, shown

TRAINING, VALIDATION = 'training', 'validation'  # ADE20K's parts
_LIST, _TABLE = 'classes.txt', 'objectInfo150.txt'  # what may name the classes


class AnnotatedFolder:
    """The images below `images` with the annotations of the same names below `annotations`, in
    `path`; a label is an annotation's PNG.

    Where `images` is divided into `training` and `validation`, `annotations` is too, and `part`
    says which it is. The classes are those of `class_names`, else of `path`: see
    `read_class_names`. `key`, `index` and `endings` (of the images) are as of `FolderSource`.

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
        endings: tuple[str, ...] = EXTENSIONS,
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
        self.class_names = read_class_names(path, key) if class_names is None else class_names
        there = {storage.join(self._folder, annotations.file(i)) for i in range(len(annotations))}
        missing = [i for i in range(len(self)) if self.annotation(i) not in there]
        check(
            not missing,
            f'{len(missing)} of {len(self)} images have no annotation; the first is '
            f'{missing and self.name(missing[0])}, whose annotation would be '
            f'{missing and shown(self.annotation(missing[0]))}: add or remove files.',
        )

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def annotation(self, index: int) -> str:
        """Where the annotation of example `index` is stored."""
        below = self.images.file(index)[len(self.images.path) :].lstrip('/')
        return storage.join(self._folder, below.rpartition('.')[0] + '.png')

    def read(self, index: int) -> Example:
        image = storage.read(self.images.file(index))
        return Example(image, storage.read(self.annotation(index)))

    def label(self, index: int) -> int:
        raise NotImplementedError

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


def read_class_names(path: str, key: str = 'config.data.path') -> tuple[str, ...]:
    """The classes of label maps: the lines of classes.txt in `path`, or those of ADE20K's
    objectInfo150.txt; else '1' to '150'."""
    try:
        there = {name for name, _ in storage.list_folder(path, ('.txt',))[1]}
        given = [name for name in (_LIST, _TABLE) if name in there]
        if not given:
            return tuple(str(number) for number in range(1, 151))
        file = storage.join(path, given[0])
        lines = storage.read(file).decode(errors='replace').splitlines()
    except OSError as error:
        raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
    names = [line.split('\t')[-1].strip() for line in lines if line.strip()]
    if given[0] == _TABLE:
        names = names[1:]  # without its head
    check(
        0 < len(names) <= IGNORED,
        f'{file} has {len(names)} classes: there may be 1 to {IGNORED}.',
    )
    return tuple(names)
