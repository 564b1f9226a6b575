"""Arrays of many pictures: they grow on disk, not in memory, and become one .npz."""

from collections.abc import Mapping
import math
from pathlib import Path
import shutil
import zipfile

import numpy as np


class Rows:
    """Arrays [N, ...] that grow by rows, each in a file of its own in a folder."""

    def __init__(self, folder: Path):
        self._folder, self._kinds, self._files = folder, {}, {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The next rows of each array: the same names, dtypes and shapes every time."""
        for name, array in arrays.items():
            if name not in self._files:
                self._kinds[name] = array.dtype, array.shape[1:]
                self._files[name] = (self._folder / f'{name}.rows').open('wb')
            self._files[name].write(array.tobytes())

    def write(self, path: Path, **others: np.ndarray) -> None:
        """An .npz of `others` and of all rows, as numpy.savez writes it; the rows are gone then."""
        with zipfile.ZipFile(path, 'w') as archive:
            for name, array in others.items():
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, file in self._files.items():
                file.close()
                rows, (dtype, shape) = Path(file.name), self._kinds[name]
                count = rows.stat().st_size // (dtype.itemsize * math.prod(shape))
                header = {'descr': dtype.str, 'fortran_order': False, 'shape': (count, *shape)}
                with (
                    archive.open(f'{name}.npy', 'w', force_zip64=True) as member,
                    rows.open('rb') as content,
                ):
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(content, member, 1 << 20)
                rows.unlink()
