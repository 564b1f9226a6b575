"""Where examples come from: each source is a numbered list of images with labels. Nothing here needs TensorFlow."""
import hashlib
import typing

import numpy as np

from beit_jax.config import check
from beit_jax.data import storage
from beit_jax.data.config import IGNORED, DataConfig
from beit_jax.data.listing import Listing
from beit_jax.data.sampler import permutation
from beit_jax.errors import RequestError

TRAINING, VALIDATION = 'training', 'validation'  # ADE20K's parts
_HOLDOUT_KEY = 20210615  # not the run's seed: every run on the same data holds out the same examples


class Example(typing.NamedTuple):
    image: bytes | np.ndarray  # an encoded file, or uint8 [H, W, 3]
    label: int | bytes | np.ndarray  # the class; or that of each pixel: an annotation as `label_maps.decode` takes it


class Source(typing.Protocol):
    """A list of examples; `read` and `name` are called from many threads."""
    class_names: tuple[str, ...]  # label -> name; () where there are no classes
    fingerprint: str  # sha256 of what the list holds: resuming on another list would not be resuming

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where example `index` is stored, for messages."""

    def read(self, index: int) -> Example:
        """Example `index`. Raises OSError where it cannot be read."""

    def label(self, index: int) -> int:
        """The class of example `index`, at less cost than `read` where that is possible; not for label maps."""

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        """Examples `start` .. `stop` - 1, with an OSError in the place of each that cannot be read: for stored data, read in one go."""


def open_source(config: DataConfig, split: str) -> Source | None:
    """The examples of `split`, 'train' or 'evaluate'; None where nothing is held out.

    Raises:
      RequestError: the settings name no readable data.
    """
    source = _open(config, split == 'train')
    if split == 'train' and config.labels_per_class:
        return Subset(source, _some_of_each_class(source, config.labels_per_class, config.subset_seed))
    return source


def _open(config, train):
    if config.name == 'shapes':
        from beit_jax.data.shapes import ShapesSource
        num_examples = config.num_examples if train else config.num_evaluate_examples
        split = 'train' if train else config.evaluate_split or 'evaluate'
        check(train or split != 'train', "config.data.evaluate_split='train' would evaluate on the training pictures: give another name.")
        return ShapesSource(num_examples, config.image_size, config.level, split, config.label_maps) if num_examples else None
    if config.name == 'folder' and config.label_maps:
        source = AnnotatedFolder(config.path, TRAINING, index=config.index)
        if config.evaluate_path:
            return source if train else AnnotatedFolder(config.evaluate_path, VALIDATION, source.class_names, 'config.data.evaluate_path',
                                                        config.index)
        if source.parts:
            return source if train else AnnotatedFolder(config.path, VALIDATION, index=config.index) if VALIDATION in source.parts else None
    elif config.name == 'folder':
        source = FolderSource(config.path, index=config.index)
        if config.evaluate_path:
            return source if train else FolderSource(config.evaluate_path, source.class_names, 'config.data.evaluate_path', config.index)
    else:
        from beit_jax.data.tfrecords import TfdsSource
        if config.evaluate_split:
            return TfdsSource(config.path, config.split if train else config.evaluate_split, config.index, config.label_maps)
        source = TfdsSource(config.path, config.split, config.index, config.label_maps)
    kept, held_out = holdout(len(source), config.holdout)
    indices = kept if train else held_out
    return source if len(indices) == len(source) else Subset(source, indices) if len(indices) else None


def _some_of_each_class(source: Source, number: int, seed: int) -> np.ndarray:
    """Sorted indices of `number` examples of every class, taken in a random order until there are enough."""
    check(bool(source.class_names), 'config.data.labels_per_class needs labelled images: sort them into one folder a class.')
    missing, kept = np.full(len(source.class_names), number), []
    for index in permutation(len(source), seed, 0):
        try:
            label = source.label(int(index))
        except OSError:  # unreadable: not among those that are kept
            continue
        check_label(source, int(index), label)
        if missing[label] > 0:
            missing[label] -= 1
            kept.append(index)
            if not missing.any():
                return np.sort(kept)
    names = ', '.join(np.array(source.class_names)[missing > 0][:3])
    raise RequestError(f'config.data.labels_per_class={number}, but there are fewer examples of {names}: lower it.')


def check_label(source: Source, index: int, label: int) -> None:
    """Raises RequestError where example `index` has a label that no class has; without classes every label is 0."""
    count = len(source.class_names)
    check(0 <= label < max(1, count), f'{source.name(index)} has the label {label}, but there are {count} classes, 0 to {count - 1}: repair '
          'the data set.')


def spread(source: Source, limit: int) -> np.ndarray:
    """At most `limit` indices (int64), evenly spread; all where it is 0."""
    return np.unique(np.linspace(0, len(source) - 1, min(limit or len(source), len(source))).astype(np.int64))


def holdout(num_examples: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (kept, held out): round(share * N) held out, at least one and not all, where `share` > 0 and N > 1."""
    held_out = min(max(1, round(share * num_examples)), num_examples - 1) if share else 0
    order = permutation(num_examples, _HOLDOUT_KEY, 0)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class Subset:
    """The examples `indices` (int [M]) of another source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices, self.class_names = source, np.asarray(indices, np.int64), source.class_names
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + self.indices.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> Example:
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> int:
        return self.source.label(int(self.indices[index]))

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        indices = self.indices[start:stop]
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)  # each of neighbours in the other source
        return [example for run in runs if len(run) for example in self.source.read_many(int(run[0]), int(run[-1]) + 1)]


class FolderSource:
    """All .jpg, .jpeg and .png files below a folder, sorted by folder, then by name; hidden files and folders are left out.

    Where all of them lie in sub-folders, the first-level sub-folder is the class; else every label is 0 and `class_names` is ().
    `class_names` may be given, so that held-out images count their classes as the training images do; `key` is the setting that
    messages name. The list of files is kept in the folder `index`, unless that is ''.
    """

    def __init__(self, path: str, class_names: tuple[str, ...] | None = None, key: str = 'config.data.path', index: str = ''):
        check(bool(path), f'{key} is empty: set it to a folder of images.')
        kind = _kind(path, key)
        check(bool(kind), f'{key}={path!r} does not exist: set it to a folder of images.')
        check(kind == 'folder', f'{key}={path!r} is a file: set it to the folder that holds the images.')
        self.path, self._listing = path, Listing(path, key, index)
        self.fingerprint = self._listing.fingerprint
        classes = [folder.partition('/')[0] for folder in self._listing.folders]
        classes = classes if all(classes) else []  # some images are not in a sub-folder
        self.class_names = tuple(sorted(set(classes))) if class_names is None else class_names
        unknown = sorted(set(classes) - set(self.class_names)) if self.class_names else ()
        check(not unknown, f'{key}={path!r} has the class {unknown and unknown[0]!r}, which the training images do not have.')
        check(bool(classes) or not self.class_names, f'{key}={path!r} has images outside class folders: sort them as the training images.')
        number = {name: label for label, name in enumerate(self.class_names)}
        self._labels = [number[name] for name in classes] if number else [0] * len(self._listing.folders)  # of each folder

    def __len__(self) -> int:
        return len(self._listing)

    def name(self, index: int) -> str:
        return storage.join(self.path, self._listing.file(index))

    def read(self, index: int) -> Example:
        return Example(storage.read(self.name(index)), self.label(index))

    def label(self, index: int) -> int:
        return self._labels[self._listing.folder(index)]

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


class AnnotatedFolder:
    """The images below `images` with the annotations of the same names below `annotations`, in `path`; a label is an annotation's PNG.

    Where `images` is divided into `training` and `validation`, `annotations` is too, and `part` says which it is. The classes are those of
    `class_names`, else of `path`: see `read_class_names`. `key` and `index` are as of `FolderSource`.

    Attributes:
      parts: `training` and `validation`, if they are there.

    Raises:
      RequestError: not such a folder, an image without annotation.
    """

    def __init__(self, path: str, part: str, class_names: tuple[str, ...] | None = None, key: str = 'config.data.path', index: str = ''):
        check(bool(path), f'{key} is empty: set it to a folder that holds images and annotations.')
        for name in ('images', 'annotations'):
            check(_kind(storage.join(path, name), key) == 'folder', f'{key}={path!r} holds no folder {name!r}: set it to one that holds images '
                  'and annotations, both of them with training and validation, or neither.')
        self.parts = tuple(name for name in (TRAINING, VALIDATION) if _kind(storage.join(path, 'images', name), key) == 'folder')
        check(not self.parts or part in self.parts, f'{key}={path!r} holds images/{"".join(self.parts)}, but no images/{part}.')
        part = part if self.parts else ''
        self._images = FolderSource(storage.join(path, 'images', part), (), key, index)
        self._folder = storage.join(path, 'annotations', part)
        annotations = Listing(self._folder, key, index)
        self.fingerprint = hashlib.sha256((self._images.fingerprint + annotations.fingerprint).encode()).hexdigest()
        self.class_names = read_class_names(path, key) if class_names is None else class_names
        there = {storage.join(self._folder, annotations.file(i)) for i in range(len(annotations))}
        missing = [i for i in range(len(self)) if self.annotation(i) not in there]
        check(not missing, f'{len(missing)} of {len(self)} images have no annotation; the first is {missing and self.name(missing[0])}, whose '
              f'annotation would be {missing and self.annotation(missing[0])}: add or remove files.')

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def annotation(self, index: int) -> str:
        """Where the annotation of example `index` is stored."""
        below = self._images.name(index)[len(self._images.path):].lstrip('/')
        return storage.join(self._folder, below.rpartition('.')[0] + '.png')

    def read(self, index: int) -> Example:
        return Example(storage.read(self.name(index)), storage.read(self.annotation(index)))

    def label(self, index: int) -> int:
        raise NotImplementedError

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        return [or_error(self.read, index) for index in range(start, stop)]


def read_class_names(path: str, key: str = 'config.data.path') -> tuple[str, ...]:
    """The classes of label maps: the lines of classes.txt in `path`, or those of ADE20K's objectInfo150.txt; else '1' to '150'."""
    try:
        there = {name for name, _ in storage.list_folder(path, ('.txt',))[1]}
        for file, head in (('classes.txt', 0), ('objectInfo150.txt', 1)):  # the head of a table
            if file in there:
                lines = storage.read(storage.join(path, file)).decode(errors='replace').splitlines()
                names = tuple(line.split('\t')[-1].strip() for line in lines if line.strip())[head:]
                check(0 < len(names) <= IGNORED, f'{storage.join(path, file)} has {len(names)} classes: there may be 1 to {IGNORED}.')
                return names
    except OSError as error:
        raise RequestError(f'{key}={path!r} cannot be read ({error}).') from error
    return tuple(str(number) for number in range(1, 151))


def _kind(path, key):
    try:
        return storage.kind(path)
    except OSError as error:
        raise RequestError(f'{key}={path!r} cannot be read ({error}).') from error


def or_error(read, *arguments) -> Example | OSError:
    """What `read` gives, or the OSError that it raises."""
    try:
        return read(*arguments)
    except OSError as error:
        return error
