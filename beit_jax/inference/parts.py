"""A folder of vectors, a row a picture, that grows part by part: whoever is killed loses the part
that was being made, and hosts that write parts of one folder need not know of each other.

Shape legend: N pictures, R of a part, D width.
"""

import csv
import importlib.util
import io
import json
import math
import os
from pathlib import Path
import shutil

import numpy as np

from beit_jax import whole_files
from beit_jax.errors import RequestError, check
from beit_jax.inference.rows import RowFile

ABOUT = '_embeddings.json'  # pyarrow and pandas pass over what begins so
UNREADABLE = -1  # a label, of a picture that cannot be read: the CSV and the tables have none then


class _Parts:
    """Parts of `about['rows']` pictures each, the last of what is left.

    about: what is in the folder and how it was made, JSON; `images`, `width`, `rows` and `stored`,
    the dtype, among it.
    """

    needs = 'numpy'  # a package

    def __init__(self, folder: Path, about: dict):
        self.folder, self.count, self._rows = folder, about['images'], about['rows']
        self._width, self._dtype = about['width'], np.dtype(about['stored'])
        self.parts = math.ceil(self.count / self._rows)

    def span(self, part: int) -> tuple[int, int]:
        """Its first picture, and the first of the next one."""
        return part * self._rows, min(self.count, (part + 1) * self._rows)

    def missing(self, parts: range) -> list[int]:
        """Those of some parts that are not there."""
        return [part for part in parts if not self._file(part).exists()]

    def write(self, part: int, rows_RD: np.ndarray, names: list[str], labels: np.ndarray) -> None:
        """A whole part, of the dtype that is stored."""

    def finish(self) -> bool:
        """Makes the whole of all parts; says whether all are there."""

    def _file(self, part: int) -> Path:
        """What is there when the part is."""


class Array(_Parts):
    """`embeddings.npy` [N, D], for np.load(mmap_mode='r'), and `rows.csv`, a line a row. Until all
    rows are there it is called `embeddings.npy.partial`, and has the lines of each part that is
    there in `.parts`."""

    def __init__(self, folder: Path, about: dict):
        super().__init__(folder, about)
        self._whole, self._lines = folder / 'embeddings.npy', folder / '.parts'
        self._partial = folder / 'embeddings.npy.partial'
        self._array = RowFile(self._partial, self._dtype, (self.count, self._width))
        if self._whole.exists():
            return
        self._lines.mkdir(exist_ok=True)
        if len(self.missing(range(self.parts))) == self.parts:
            self._array.allocate()
            return
        try:  # rows that are gone would be zeros
            self._array.check()
        except (ValueError, FileNotFoundError) as error:
            if not self._whole.exists():  # which another host may have finished meanwhile
                raise RequestError(
                    f'{self._partial} is damaged: remove {folder} and start again.'
                ) from error

    def missing(self, parts):
        return [] if self._whole.exists() else super().missing(parts)

    def write(self, part, rows_RD, names, labels):
        self._array.write(self.span(part)[0], rows_RD)
        text = io.StringIO()
        shown = ('' if label == UNREADABLE else label for label in labels.tolist())
        csv.writer(text, lineterminator='\n').writerows(zip(names, shown, strict=True))
        whole_files.replace(self._file(part), text.getvalue())  # after the rows that it is of

    def finish(self):
        if self.missing(range(self.parts)):
            return False
        if not self._whole.exists():
            self._join()
        shutil.rmtree(self._lines, ignore_errors=True)
        self._partial.unlink(missing_ok=True)  # of a host that came when another one was through
        return True

    def _join(self):
        try:
            with whole_files.whole_file(self.folder / 'rows.csv') as file, file.open('wb') as lines:
                lines.write(b'name,label\n')
                for part in range(self.parts):
                    lines.write(self._file(part).read_bytes())
            os.replace(self._partial, self._whole)
        except FileNotFoundError:  # two hosts are through at once, the other one was faster
            if not self._whole.exists():
                raise

    def _file(self, part):
        return self._lines / f'{part:05}.csv'


class Tables(_Parts):
    """`part-00000-of-00013.parquet`, ..., for pyarrow.dataset and what else reads Parquet: columns
    `row`, `name`, `label` and `embedding`, a list of D numbers."""

    needs = 'pyarrow'

    def write(self, part, rows_RD, names, labels):
        import pyarrow as pa
        import pyarrow.parquet

        first, stop = self.span(part)
        known = pa.array(labels, pa.int32(), mask=labels == UNREADABLE)
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(rows_RD.ravel()), self._width)
        columns = pa.array(np.arange(first, stop)), pa.array(names, pa.string()), known, numbers
        table = pa.table(dict(zip(('row', 'name', 'label', 'embedding'), columns)))
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file, use_dictionary=False)
        whole_files.replace(self._file(part), file.getvalue())

    def finish(self):
        return not self.missing(range(self.parts))

    def _file(self, part):
        return self.folder / f'part-{part:05}-of-{self.parts:05}.parquet'


FORMATS = {'npy': Array, 'parquet': Tables}


def open_parts(folder: Path, about: dict) -> Array | Tables:
    """The parts in a folder, which is made if need be; about: see `_Parts`, and `format` of
    FORMATS.

    Raises:
      RequestError: it holds something else, or parts that were made otherwise; says what differs.
    """
    about, file = json.loads(json.dumps(about)), folder / ABOUT
    needs = FORMATS[about['format']].needs
    check(
        importlib.util.find_spec(needs) is not None,
        f'--format={about["format"]} takes {needs}: pip install {needs}.',
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        others = [name for name in os.listdir(folder) if not name.startswith(('.', ABOUT))]
        check(
            not others,
            f'{folder} holds other files ({min(others, default="")}): give a new folder.',
        )
        with whole_files.whole_file(file) as new:
            new.write_text(json.dumps(about, indent=1) + '\n')
    saved = whole_files.read_json(file, f'remove {folder} and start again')
    differing = whole_files.differences(saved, about)
    check(
        not differing,
        f'{folder} holds embeddings of something else ({"; ".join(differing[:3])}): give another '
        '--output, or remove it.',
    )
    return FORMATS[about['format']](folder, about)
