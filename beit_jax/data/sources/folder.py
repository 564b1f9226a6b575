"""A folder of image files, one sub-folder a class where there are classes."""

from collections.abc import Sequence
import unicodedata

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.source import Example, or_error
from beit_jax.data.stores import storage
from beit_jax.data.stores.listing import Listing
from beit_jax.errors import check, of_storage, shown


class FolderSource:
    """All files below a folder with one of the `endings`, sorted by folder, then by name; hidden
    files and folders are left out.

    Where all of them lie in sub-folders, the first-level sub-folder is the class; else every label
    is 0 and `class_names` is (). `class_names` may be given, so that held-out images count their
    classes as the training images do; `key` is the setting that messages name. The list of files is
    kept in the folder `index`, unless that is ''.

    Attributes:
      folders: the paths below `path` of all folders that hold images, sorted; '' is `path` itself.
    """

    def __init__(
        self,
        path: str,
        class_names: tuple[str, ...] | None = None,
        key: str = 'config.data.path',
        index: str = '',
        endings: tuple[str, ...] = ENDINGS,
    ):
        check(bool(path), f'{key} is empty: set it to a folder of images.')
        kind = path_kind(path, key)
        check(bool(kind), f'{key}={path!r} does not exist: set it to a folder of images.')
        check(
            kind == 'folder',
            f'{key}={path!r} is a file: set it to the folder that holds the images.',
        )
        self.path, self._listing = path, Listing(path, key, index, endings)
        self.fingerprint, self.folders = self._listing.fingerprint, self._listing.folders
        classes = [folder.partition('/')[0] for folder in self.folders]
        classes = classes if all(classes) else []  # some images are not in a sub-folder
        self.class_names, self._labels = numbered(classes, class_names, f'{key}={path!r}')
        check(
            bool(classes) or not self.class_names,
            f'{key}={path!r} has images outside class folders: sort them as the training images.',
        )
        self._labels = self._labels or [0] * len(self.folders)  # of each folder

    def __len__(self) -> int:
        return len(self._listing)

    def name(self, index: int) -> str:
        return shown(self.file(index))

    def file(self, index: int) -> str:
        """The path of example `index`."""
        return storage.join(self.path, self._listing.file(index))

    def read(self, index: int) -> Example:
        return Example(storage.read(self.file(index)), self.label(index))

    def label(self, index: int) -> int:
        return self._labels[self._listing.folder(index)]

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


def numbered(
    classes: Sequence[str], class_names: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], list[int]]:
    """(the names of all classes, the number of each of `classes`), by `class_names` where they are
    given, without numbers where those are ().

    Raises:
      RequestError: a class that `class_names` does not have; `where` is what the message begins
        with.
    """
    # sorted as they are stored, then named as they can be printed
    found = tuple(map(shown, sorted(set(classes))))
    classes = list(map(shown, classes))
    # macOS stores an accent as a letter of its own, other systems do not
    composed = {unicodedata.normalize('NFC', name): name for name in class_names or ()}
    if class_names and not set(classes) <= set(class_names):
        classes = [composed.get(unicodedata.normalize('NFC', name), name) for name in classes]
    names = found if class_names is None else class_names
    number = {name: label for label, name in enumerate(names)}
    unknown = sorted(set(classes) - set(names)) if names else ()
    check(
        not unknown,
        f'{where} has the class {unknown and unknown[0]!r}, which the training images do not have.',
    )
    return names, [number[name] for name in classes] if names else []


def path_kind(path: str, key: str) -> str:
    """`storage.kind`; what cannot be read is an error that names the setting `key`."""
    try:
        return storage.kind(path)
    except OSError as error:
        raise of_storage(error, f'{key}={path!r} cannot be read ({error}).') from error
