"""What a folder holds besides the pictures that are read, and what makes one wonder at it."""

from collections import Counter
import os
from typing import NamedTuple

import numpy as np

from beit_jax.data.config import ENDINGS, IGNORED, DataConfig
from beit_jax.data.inspection import in_threads
from beit_jax.data.pictures import label_maps
from beit_jax.data.sources.annotated_folder import TRAINING, AnnotatedFolder
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.splits import PARTS
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.data.stores import storage
from beit_jax.errors import RequestError, shown


def left_out(path: str) -> dict[str, int]:
    """How many files below a local folder are not read, by their ending ('' where they have none),
    most first; 'hidden': files and folders."""
    found, waiting = Counter(), ['']
    while waiting:
        folder = waiting.pop()
        if storage.leads_back(os.path.realpath(path), folder):
            continue
        below, files = storage.list_folder(storage.join(path, folder))
        hidden = len(os.listdir(storage.join(path, folder))) - len(below) - len(files)
        found['hidden'] += hidden
        found.update(os.path.splitext(name)[1].lower() for name, _ in files)
        waiting += [storage.join(folder, name) for name in below]
    order = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))
    return {end: count for end, count in order if count and end not in ENDINGS}


def strays(source: Source, path: str) -> list[str]:
    """The pictures that lie beside folders of pictures, which are no classes therefore."""
    names = [source.name(index) for index in range(len(source))] if not source.class_names else []
    root = shown(path).rstrip('/')
    beside = [name for name in names if os.path.dirname(name) == root]
    return beside if len(beside) < len(names) else []


class Parts(NamedTuple):
    """Folders of pictures that are parts of a set, as train and test."""

    folder: str  # in which they lie
    names: list[str]

    @property
    def meant(self) -> dict[str, str]:
        """The settings of `DataConfig` that train on one of them and hold out another."""
        train = next((name for name in self.names if name.lower().startswith('train')), '')
        train = train or self.names[0]
        held = [name for name in self.names if name != train]
        held.sort(key=lambda name: name.lower()[:3] != 'val')
        paths = {'path': train} | ({'evaluate_path': held[0]} if held else {})
        return {key: storage.join(self.folder, name) for key, name in paths.items()}

    def in_words(self, option: str) -> str:
        """What to do about them; `option`: what stands before the names of settings."""
        given = ' '.join(f'{option}{key}={shown(path)}' for key, path in self.meant.items())
        names = shown(', '.join(self.names))
        return f'{shown(self.folder)} holds {names}, which are parts of a set: give {given}'


def parts_of_a_set(source: Source, path: str) -> Parts | None:
    """The folders of `path`, or of the one folder in it, where all that hold pictures are called as
    parts of a set; else None. What is no folder of pictures has none."""
    while isinstance(source, Subset):
        source = source.source
    folders = list(filter(None, getattr(source, 'folders', ())))
    while folders:
        names = sorted({folder.partition('/')[0] for folder in folders})
        if all(name.lower() in PARTS for name in names):
            return Parts(path, names)
        if len(names) > 1:
            break
        path = storage.join(path, names[0])
        folders = list(filter(None, (folder.partition('/')[2] for folder in folders)))
    return None


def lies_in(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, and is not that folder. '' lies in none."""
    if not path or not folder or storage.is_remote(path) != storage.is_remote(folder):
        return False
    paths = path, folder
    if not storage.is_remote(path):
        paths = map(os.path.realpath, paths)
    inner, outer = (each.rstrip('/') + '/' for each in paths)
    return inner != outer and inner.startswith(outer)


def is_reduced(path: str, found: dict) -> bool:
    """Whether the annotations that `annotations` found count the classes from 1: those of ADE20K,
    and of a set with classes.txt where they have no 0, or one more than it names."""
    values, ours = found['values'], storage.kind(storage.join(path, 'classes.txt'))
    return not ours or 0 not in values or values[-1] >= found['classes']


def annotated(data: DataConfig) -> Source | None:
    """The training pictures with their label maps, and without them as its attribute `images`;
    None where they are no folder or set of TFDS that has some."""
    if data.name == 'tfds' and data.path:
        from beit_jax.data.sources.tfrecords import TfdsSource, has_label_maps

        if has_label_maps(data.path):
            return TfdsSource(data.path, data.split, data.index, label_maps=True)
    parts = (storage.join(data.path, name) for name in ('images', 'annotations'))
    if data.name == 'folder' and all(storage.kind(part) == 'folder' for part in parts):
        return AnnotatedFolder(data.path, TRAINING, index=data.index)
    return None


def annotations(source: Source, limit: int, workers: int) -> dict:
    """The values of the pixels of at most `limit` annotations (0: all), before any is a class."""

    def count(index):
        try:
            label = source.read(index).label
            values = label_maps.decode(label, source.name(index), IGNORED + 1, False)
        except (OSError, RequestError) as error:
            return f'{source.name(index)}: {error}'
        return np.bincount(values.ravel(), minlength=IGNORED + 1)

    found = list(in_threads(count, spread(source, limit), workers, 'annotations'))
    wrong = [one for one in found if isinstance(one, str)]
    counts = [one for one in found if not isinstance(one, str)]
    pixels = np.sum(counts, axis=0, dtype=np.int64, initial=0) * np.ones(IGNORED + 1, np.int64)
    values = np.flatnonzero(pixels[:IGNORED]).tolist()
    return {
        'examined': len(found),
        'wrong': wrong,
        'values': values,
        'share_of_0': float(pixels[0] / max(1, pixels.sum())),
        'share_of_255': float(pixels[IGNORED] / max(1, pixels.sum())),
        'classes': len(source.class_names),
        # the classes that no pixel has, with config.data.reduce_zero_label=false and true
        'missing': [name for i, name in enumerate(source.class_names) if i not in values],
        'missing_reduced': [
            name for i, name in enumerate(source.class_names, 1) if i not in values
        ],
    }
