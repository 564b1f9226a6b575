"""The images below a folder as a few arrays: half a gigabyte for 14 million names, not several."""

import hashlib
import os
import sys

import numpy as np

from beit_jax.data.stores import manifest, storage
from beit_jax.errors import check, of_storage, shown

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.jfif', '.jpe')
# of pictures that are not RGB of 8 bits
ARRAYS = (*EXTENSIONS, '.npy', '.tif', '.tiff')


class Listing:
    """All files with one of the `endings` below `path`, sorted by folder, then by name; hidden
    files and folders are left out, links followed, but one that leads to a folder that it lies in
    is named on stderr and not entered.

    Attributes:
      folders: the paths below `path` of those folders that hold images, sorted; '' is `path`
        itself.
      fingerprint: sha256 of all paths below `path` and sizes.

    While it is made, memory holds the names of a few folders: one flat folder of millions takes
    gigabytes then.

    Raises:
      RequestError, which names the setting `key`: a folder that cannot be listed, or no images. See
        `manifest.open_list`.
    """

    def __init__(self, path: str, key: str, index: str = '', endings: tuple[str, ...] = EXTENSIONS):
        root = '' if storage.is_remote(path) else os.path.realpath(path)

        def look(folder):
            try:
                if root and storage.leads_back(root, folder):
                    where = shown(storage.join(path, folder))
                    print(f'{where} leads to a folder that it lies in: left out', file=sys.stderr)
                    return manifest.Task([], 0, [])
                folders, files = storage.list_folder(storage.join(path, folder), endings)
            except OSError as error:
                raise of_storage(
                    error,
                    f'{key}={path!r}: cannot list {storage.join(path, folder)!r} '
                    f'({error.strerror or error}).',
                ) from error
            below = [storage.join(folder, name) for name in folders]
            return manifest.Task(below, len(files), list(zip(*files)))

        def pack(found):
            facts, arrays = _pack(found)
            check(
                arrays['first'][-1] > 0,
                f'{key}={path!r} holds no image: looked for {", ".join(endings)} there and in '
                'its sub-folders.',
            )
            return facts, arrays

        of = {'list': 'images', 'path': path if storage.is_remote(path) else os.path.abspath(path)}
        if endings != EXTENSIONS:
            of['endings'] = ','.join(endings)
        facts, arrays = manifest.open_list(index, of, [''], look, pack)
        self.fingerprint = facts['fingerprint']
        self.folders = os.fsdecode(arrays['folders'].tobytes()).split('\0')
        self._first, self._names, self._ends = arrays['first'], arrays['names'], arrays['ends']

    def __len__(self) -> int:
        return len(self._ends)

    def folder(self, index: int) -> int:
        """The number of the folder that holds file `index`."""
        return int(np.searchsorted(self._first, index, 'right')) - 1

    def file(self, index: int) -> str:
        """The path of file `index` below `path`."""
        begin, end = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        name = os.fsdecode(self._names[begin:end].tobytes())
        return storage.join(self.folders[self.folder(index)], name)


def _pack(found):
    """(facts, arrays) out of (folder, [names, sizes]), ...

    Arrays: `folders` uint8, their paths with zeros between; `first` int64 [folders + 1], the first
    file of each; `names` uint8, one after the other; `ends` int64 [files], where each ends.
    """
    digest, folders, first, names = hashlib.sha256(), [], [0], bytearray()
    lengths = [np.zeros(0, np.uint16)]
    for folder, files in found:
        if not files:
            continue
        encoded = [os.fsencode(name) for name in files[0]]
        prefix = os.fsencode(folder) + b'/' if folder else b''
        lines = [b'%b%b\t%d\n' % (prefix, name, size) for name, size in zip(encoded, files[1])]
        digest.update(b''.join(lines))
        names += b''.join(encoded)
        lengths.append(np.fromiter(map(len, encoded), np.uint16, len(encoded)))
        folders.append(os.fsencode(folder))
        first.append(first[-1] + len(encoded))
    arrays = {
        'first': np.array(first, np.int64),
        'ends': np.cumsum(np.concatenate(lengths), dtype=np.int64),
        'folders': np.frombuffer(b'\0'.join(folders), np.uint8),
        'names': np.frombuffer(names, np.uint8),
    }
    return {'fingerprint': digest.hexdigest()}, arrays
