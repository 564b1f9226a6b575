"""A tar of pictures whose classes another file knows: ILSVRC2012_img_val.tar, by the development
kit or by Kaggle's table."""

from collections import defaultdict
from collections.abc import Mapping
import csv
import io
import os
from pathlib import PurePath
import tarfile

import numpy as np

from beit_jax.data.sources.class_tars import PlacedSource
from beit_jax.data.sources.folder import path_kind
from beit_jax.data.stores import storage
from beit_jax.data.stores.class_tars import Placed, pictures, placed
from beit_jax.data.stores.tar_file import reading
from beit_jax.errors import check, of_storage, shown

_META, _TRUTH = 'data/meta.mat', 'data/ILSVRC2012_validation_ground_truth.txt'


class LabelledTar(PlacedSource):
    """The pictures of a tar.

    `labels`: of each picture {name without ending: class}; `class_names`: all classes, or None for
    those of `labels`; `key`: the option that messages name.

    Raises:
      RequestError: the tar is damaged; a picture without label, a label without picture, a class
        that `class_names` does not have.
    """

    def __init__(
        self,
        path: str,
        labels: Mapping[str, str],
        class_names: tuple[str, ...] | None,
        key: str,
    ):
        check(path_kind(path, key) == 'file', f'{key}={path!r} is no file: give a tar of pictures.')
        with reading(path, f'{key}={shown(path)!r}') as file:
            found = pictures(file, 0, file.seek(0, os.SEEK_END))
        by_class, missing = defaultdict(list), dict(labels)
        for member in found:
            stem = PurePath(member.name).stem
            check(
                stem in missing,
                f'{key}={path!r}: of {shown(member.name)!r} no class is known: give the --labels '
                'of this tar.',
            )
            by_class[missing.pop(stem)].append(member)
        check(
            not missing,
            f'{key}={path!r} lacks {len(missing)} of the {len(labels)} pictures that have labels, '
            f'the first is {min(missing, default="")!r}: download it again.',
        )
        columns = ((name, list(zip(*by_class[name]))) for name in sorted(by_class))
        tars = Placed(*placed(columns), lambda name: path)
        names = tuple(sorted(set(labels.values()))) if class_names is None else class_names
        super().__init__(tars, names, f'{key}={path!r}')


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
