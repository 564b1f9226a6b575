"""Pictures whose classes another file knows: those of ILSVRC2012_img_val.tar by the development
kit, those of the folder that Kaggle's archive has by its table."""

from collections import defaultdict
from collections.abc import Mapping
import csv
import io
import os
from pathlib import PurePath
import tarfile

import numpy as np

from beit_jax.data.config import ENDINGS
from beit_jax.data.sources.class_tars import PlacedSource
from beit_jax.data.sources.folder import path_kind
from beit_jax.data.sources.source import or_error
from beit_jax.data.stores import storage
from beit_jax.data.stores.class_tars import Placed, pictures, placed
from beit_jax.data.stores.tar_file import Member, reading
from beit_jax.errors import check, of_storage, shown

_META, _TRUTH = 'data/meta.mat', 'data/ILSVRC2012_validation_ground_truth.txt'


class Labelled(PlacedSource):
    """The pictures of a tar, or of a folder that has no folders.

    `labels`: of each picture {name without ending: class}; `class_names`: all classes, or None for
    those of `labels`; `key`: the option that messages name.

    Raises:
      RequestError: neither of them, a damaged tar; a picture without label, a label without
        picture, a class that `class_names` does not have.
    """

    def __init__(
        self,
        path: str,
        labels: Mapping[str, str],
        class_names: tuple[str, ...] | None,
        key: str,
    ):
        kind = path_kind(path, key)
        check(
            bool(kind),
            f'{key}={path!r} does not exist: give a tar of pictures, or a folder of them.',
        )
        found = _files(path, key) if kind == 'folder' else _tar(path, key)
        by_class, missing = defaultdict(list), dict(labels)
        for member in found:
            stem = PurePath(member.name).stem
            check(
                stem in missing,
                f'{key}={path!r}: of {shown(member.name)!r} no class is known: give the --labels '
                'of these pictures.',
            )
            by_class[missing.pop(stem)].append(member)
        check(
            not missing,
            f'{key}={path!r} lacks {len(missing)} of the {len(labels)} pictures that have labels, '
            f'the first is {min(missing, default="")!r}: download it again.',
        )
        columns = ((name, list(zip(*by_class[name]))) for name in sorted(by_class))
        store = _Files if kind == 'folder' else Placed
        there = store(*placed(columns), lambda name: path)
        names = tuple(sorted(set(labels.values()))) if class_names is None else class_names
        super().__init__(there, names, f'{key}={path!r}')


class _Files(Placed):
    """Each a file of the folder."""

    def name(self, index: int) -> str:
        return shown(self._path(index))

    def _path(self, index):
        return storage.join(self.files[0], os.path.basename(self.names.file(index)))

    def _read(self, shard, start, stop):
        return [or_error(storage.read, self._path(index)) for index in range(start, stop)]


def _files(folder, key) -> list[Member]:
    try:
        found = storage.list_folder(folder, ENDINGS)[1]
    except OSError as error:
        raise of_storage(error, f'{key}={folder!r} cannot be read ({error}).') from error
    return [Member(name, size, 0) for name, size in found]


def _tar(path, key) -> list[Member]:
    with reading(path, f'{key}={shown(path)!r}') as file:
        return pictures(file, 0, file.seek(0, os.SEEK_END))


def read_labels(path: str, key: str) -> dict[str, str]:
    """{name of a picture without ending: class} of ImageNet's validation set, out of
    `ILSVRC2012_devkit_t12.tar.gz` or Kaggle's `LOC_val_solution.csv`.

    Raises:
      RequestError, which names the option `key`: neither of them, or damaged.
    """
    try:
        data = storage.read(path)
        if path.lower().endswith('.csv'):
            return _of_table(data.decode())
        with tarfile.open(fileobj=io.BytesIO(data)) as kit:
            return _of_kit(kit)
    except (OSError, EOFError, tarfile.TarError, ValueError, LookupError, TypeError) as error:
        raise of_storage(
            error,
            f'{key}={path!r} cannot be read ({error}): give ILSVRC2012_devkit_t12.tar.gz, or '
            "Kaggle's LOC_val_solution.csv.",
        ) from error


def _of_table(text: str) -> dict[str, str]:
    """Lines NAME,CLASS X Y X Y, ... below a head."""
    return {name: boxes.split()[0] for name, boxes in list(csv.reader(text.splitlines()))[1:]}


def _of_kit(kit: tarfile.TarFile) -> dict[str, str]:
    """The number of a line is that of a picture, what stands there that of a class in _META."""
    import scipy.io  # here, because it takes a second

    meta, truth = (_inside(kit, name) for name in (_META, _TRUTH))
    synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)['synsets'])
    classes = {int(synset['ILSVRC2012_ID']): str(synset['WNID']) for synset in synsets}
    return {
        f'ILSVRC2012_val_{number:08}': classes[int(label)]
        for number, label in enumerate(truth.split(), 1)
    }


def _inside(kit, name):
    found = [member for member in kit if member.isreg() and member.name.endswith(name)]
    if len(found) != 1:
        raise ValueError(f'there are {len(found)} files {name} in it')
    return kit.extractfile(found[0]).read()
