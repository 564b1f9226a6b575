"""Files of torch.save, honest ones by torch, and ones that are put together by hand."""

import collections
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
TWELVE = {'archive/data/0': np.arange(12, dtype=np.float32).tobytes()}


def save(objects, path, zipped=True):
    torch.save(objects, path, _use_new_zipfile_serialization=zipped)
    return path


def archive(directory, data, entries=TWELVE, **options):
    """A file with `data` as its pickle; entries: of the archive besides, a storage of 12 floats."""
    path = directory / 'forged.pth'
    with zipfile.ZipFile(path, 'w', **options) as file:
        file.writestr('archive/data.pkl', data)
        for name, value in entries.items():
            file.writestr(name, value)
    return path


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


Name = collections.namedtuple('Name', 'module name')


def forged_tensor(offset=0, shape=(3,), strides=(1,), count=12, key='0', kind='FloatStorage'):
    """A pickle of {'w': tensor} as torch writes it, with numbers of our choice."""
    out = io.BytesIO()

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return Call, (Storage(), offset, shape, strides, False, collections.OrderedDict())

    class Forger(pickle._Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return 'storage', Name('torch', kind), key, 'cpu', count
            return None

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                return self.write(f'c{obj.module}\n{obj.name}\n'.encode())
            return super().save(obj, save_persistent_id)

    Forger(out, protocol=2).dump({'w': Tensor()})
    name = f'c{Call.__module__}\nCall\n'.encode()
    assert name in out.getvalue()
    return out.getvalue().replace(name, b'ctorch._utils\n_rebuild_tensor_v2\n')
