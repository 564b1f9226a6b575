"""Arrays of many pictures, which grow on disk and not in memory: those of an .npz, and a .npy whose
rows come in any order."""

from collections.abc import Mapping
import math
import os
from pathlib import Path
import shutil
import zipfile

import numpy as np

from beit_jax import whole_files


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


class RowFile:
    """A .npy array [N, ...] that several processes may write, each its own rows. It is written and
    not mapped: where the disk is full that is an OSError, and not the end of the process."""

    def __init__(self, path: Path, dtype, shape: tuple[int, ...]):
        self._path, self._dtype, self._shape = path, np.dtype(dtype), shape
        self._header = whole_files.rows_header(dtype, shape)
        self._row_bytes = self._dtype.itemsize * math.prod(shape[1:])

    def allocate(self) -> None:
        """Makes the file, without a byte for rows that nobody writes; what is there stays."""
        with open(self._path, 'ab'):
            pass
        with self._path.open('r+b') as file:
            file.write(self._header)
            file.truncate(len(self._header) + self._shape[0] * self._row_bytes)

    def check(self) -> None:
        """Raises ValueError where the file is of another size or begins otherwise."""
        whole_files.rows_offset(self._path, self._dtype, self._shape)

    def write(self, first: int, rows: np.ndarray) -> None:
        """The rows from `first` on; they are on the disk then."""
        with self._path.open('r+b') as file:
            file.seek(len(self._header) + first * self._row_bytes)
            file.write(np.ascontiguousarray(rows, self._dtype).data)
            file.flush()
            os.fsync(file.fileno())
