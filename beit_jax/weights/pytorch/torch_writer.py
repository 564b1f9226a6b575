"""Writes files that torch.load reads, without PyTorch.

Such a file is a zip archive of raw numbers, and of a pickle that only says where they lie. The
pickle names three things, all on the list of `torch.load(weights_only=True)`: a float or long
storage, the call that makes a tensor of one, and OrderedDict. It is put together from operations
here because Python's pickler wants to import what it names.
"""

from pathlib import Path
import pickle
import zipfile

import numpy as np

_STORAGES = {'float32': b'FloatStorage', 'int64': b'LongStorage'}


def write_torch_file(path: str | Path, tensors: dict[str, np.ndarray], wrapper: str = '') -> None:
    """{wrapper: tensors} as `torch.save` writes it.

    Args:
      tensors: C-contiguous arrays, float32 or int64, by the names of a state dict.
      wrapper: the key under which a reader looks for them; '': 'state_dict' as mmsegmentation for
        its models, else 'model' as the official code.
    """
    segmenter = any(name.startswith('decode_head.') for name in tensors)
    wrapper = wrapper or ('state_dict' if segmenter else 'model')
    program = [pickle.PROTO, b'\x02', pickle.EMPTY_DICT, _value(wrapper), pickle.EMPTY_DICT]
    for i, (name, array) in enumerate(tensors.items()):
        program += [_value(name), _tensor(str(i), array), pickle.SETITEM]
    program += [pickle.SETITEM, pickle.STOP]
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr('archive/data.pkl', b''.join(program))
        archive.writestr('archive/byteorder', 'little')
        for i, array in enumerate(tensors.values()):
            little = array.astype(array.dtype.newbyteorder('<'), copy=False)
            archive.writestr(f'archive/data/{i}', little.tobytes())
        archive.writestr('archive/version', '3\n')


def _tensor(key: str, array: np.ndarray) -> bytes:
    """The operations that leave a tensor on the stack.

    That is _rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict()).
    """
    kind = _name(b'torch', _STORAGES[str(array.dtype)])
    strides = tuple(stride // array.itemsize for stride in array.strides)
    storage = _tuple(_value('storage'), kind, _value(key), _value('cpu'), _value(array.size))
    hooks = _name(b'collections', b'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _value(0),
        _value(array.shape),
        _value(strides),
        pickle.NEWFALSE,
        hooks,
    )
    return _name(b'torch._utils', b'_rebuild_tensor_v2') + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b''.join(items) + pickle.TUPLE


def _name(module: bytes, name: bytes) -> bytes:
    return pickle.GLOBAL + module + b'\n' + name + b'\n'


def _value(value: str | int | tuple) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + len(text).to_bytes(4, 'little') + text
    if isinstance(value, int):
        return pickle.LONG1 + b'\x08' + value.to_bytes(8, 'little', signed=True)
    return _tuple(*map(_value, value))
