"""PyTorch files without PyTorch and without trust: a pickle is a program, and this reader runs none of its calls.

`torch.save` writes a pickle of the objects and, beside it, the bytes of the tensors: in a zip archive, or one after the other (the legacy
format of torch before 1.6). Every name in the pickle must be in the exact list below; what it stands for is an inert record of what was
said about it. Tensors are made by NumPy, once their bytes, offsets and strides have been checked.
"""
import _compat_pickle
import dataclasses
import io
import math
from pathlib import Path
import pickle
import pickletools
import zipfile

import ml_dtypes
import numpy as np

from beit_jax.config import check
from beit_jax.errors import RequestError

CLASSES = frozenset({  # modules and settings: inert records
    'dall_e.encoder.Encoder', 'dall_e.encoder.EncoderBlock', 'dall_e.decoder.Decoder', 'dall_e.decoder.DecoderBlock', 'dall_e.utils.Conv2d',
    'torch.nn.modules.container.Sequential', 'torch.nn.modules.activation.ReLU', 'torch.nn.modules.pooling.MaxPool2d',
    'torch.nn.modules.linear.Identity', 'torch.nn.modules.upsampling.Upsample', 'torch.device', 'argparse.Namespace'})
MAPPING = 'collections.OrderedDict'  # of tensors; it may carry attributes
STORAGES = {f'torch.{name}Storage': np.dtype(kind).newbyteorder('<') for name, kind in {
    'Float': 'f4', 'Double': 'f8', 'Half': 'f2', 'Long': 'i8', 'Int': 'i4', 'Short': 'i2', 'Char': 'i1', 'Byte': 'u1', 'Bool': '?'}.items()
    } | {'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16)}
WRAPPERS = ('weights', 'model', 'module', 'state_dict')  # under which a file may keep its tensors
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_RANK = 32


class Record:
    """What a file says of an object: the arguments of its class, then its attributes."""

    def __init__(self, *arguments):
        self.arguments = arguments


@dataclasses.dataclass(frozen=True)
class Storage:
    """`count` numbers in a row; `key` is the name of their bytes."""
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; sizes and strides in numbers."""
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file of `torch.save`: a state dict (also one level down, under a name of WRAPPERS) or a whole module.

    Returns:
      arrays by the names that PyTorch's `state_dict()` gives them.

    Raises:
      RequestError: not such a file, damaged, or it names or does anything that weights have no need of.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f'{path} cannot be read: {error.strerror}.') from error
    try:
        tree, storages = _read_zip(data) if data.startswith(b'PK\x03\x04') else _read_legacy(data)
        named = _named_tensors(tree)
        size = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in named.values())
        check(size <= 2 * len(data), f'its tensors would take {size:,} bytes, the file has {len(data):,}')
        return {name: _array(name, tensor, storages) for name, tensor in named.items()}
    except RequestError as error:
        raise RequestError(f'{path} is refused: {error}. Nothing in it was run.') from error
    except Exception as error:  # whatever a forged file makes the parsers stumble over
        raise RequestError(f'{path} cannot be read as a file of torch.save ({type(error).__name__}: {error}): it is damaged or truncated, '
                           'or something else. Nothing in it was run.') from error


def _read_zip(data: bytes):
    """(objects, reader of the bytes of a storage)."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    check(len(entries) == len(archive.infolist()), 'two entries of the archive have the same name')
    for name, entry in entries.items():
        check(entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size,
              f'its entry {name} is compressed ({entry.compress_size:,} bytes to {entry.file_size:,}); torch.save never does that')
    total = sum(entry.file_size for entry in entries.values())
    check(total <= len(data), f'its entries claim {total:,} bytes, the file has {len(data):,}')
    pickles = [name for name in entries if name.endswith('/data.pkl') and name.count('/') == 1]
    check(len(pickles) == 1, 'the archive is not of torch.save: it has no single data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    order = archive.read(root + 'byteorder') if root + 'byteorder' in entries else b'little'
    check(order == b'little', f'its byte order is {order!r}; only little is read')
    tree = _Unpickler(archive.read(pickles[0])).load_checked()

    def storage_bytes(storage):
        name = f'{root}data/{storage.key}'
        check(name in entries, f'it has no entry {name}')
        return archive.read(name)
    return tree, storage_bytes


def _read_legacy(data: bytes):
    """(objects, reader of the bytes of a storage). Five pickles: magic, version, system, objects, keys; then each storage: count, bytes."""
    stream = io.BytesIO(data)
    magic = _Unpickler.next_of(stream)
    check(magic == LEGACY_MAGIC, 'it is a plain pickle, not a file of torch.save')
    _, system, tree, keys = (_Unpickler.next_of(stream) for _ in range(4))
    check(isinstance(system, dict) and system.get('little_endian') is True, 'its byte order is not little')
    check(isinstance(keys, list), 'its list of storages is not a list')
    start = stream.tell()
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in _named_tensors(tree).values()}
    places = {}
    for key in keys:
        count = int.from_bytes(data[start:start + 8], 'little', signed=True)
        check(key in dtypes, f'the type of its storage {key!r} is unknown')
        size = count * dtypes[key].itemsize
        check(0 <= size <= len(data) - start - 8, f'storage {key!r} claims {count:,} numbers, more than the file holds')
        places[key] = slice(start + 8, start + 8 + size)
        start += 8 + size

    def storage_bytes(storage):
        check(storage.key in places, f'it has no storage {storage.key!r}')
        return data[places[storage.key]]
    return tree, storage_bytes


class _Unpickler(pickle.Unpickler):
    """Knows the names of the list above and no other."""

    def __init__(self, data: bytes):
        for operation, argument, _ in pickletools.genops(data):  # parses without running; refuses lengths beyond the data
            check('PUT' not in operation.name or int(argument) <= len(data), f'it would keep {argument} objects')
        super().__init__(io.BytesIO(data), encoding='utf-8')
        self._records = {}

    @classmethod
    def next_of(cls, stream):
        """The objects of the pickle at which a stream stands; leaves the stream behind it."""
        start = stream.tell()
        for operation, _, _ in pickletools.genops(stream):
            if operation.name == 'STOP':
                break
        size = stream.tell() - start
        stream.seek(start)
        return cls(stream.read(size)).load_checked()

    def load_checked(self):
        try:
            return self.load()
        except RecursionError as error:
            raise RequestError('its objects are nested too deeply') from error

    def find_class(self, module, name):
        # the names of Python 2, in which the protocols before 3 write, as pickle itself translates them
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
        full = f'{module}.{name}'
        if full in CLASSES or full == MAPPING:  # made anew for each file, for a file may set attributes
            return self._records.setdefault(full, type(name, (dict if full == MAPPING else Record,), {}))
        if full == 'builtins.set':
            return set
        if full in STORAGES:
            return STORAGES[full]
        functions = {'torch._utils._rebuild_tensor_v2': _rebuild_tensor, 'torch._utils._rebuild_parameter': _rebuild_parameter}
        known_as = f' (os.{name})' if module in ('posix', 'nt') else ''
        check(full in functions, f'it names {full}{known_as}, which weights have no need of')
        return functions[full]

    def persistent_load(self, identity):
        check(isinstance(identity, tuple) and len(identity) >= 2, f'it has a reference that is no storage: {str(identity)[:80]}')
        if identity[0] == 'module' and isinstance(identity[1], type) and issubclass(identity[1], Record):
            return identity[1]  # the legacy format adds the source text of each module's class
        check(identity[0] == 'storage' and len(identity) in (5, 6) and isinstance(identity[1], np.dtype) and isinstance(identity[2], str)
              and _is_size(identity[4]), f'it has a reference that is no storage: {str(identity)[:80]}')
        check(len(identity) == 5 or identity[5] is None, f'storage {identity[2]!r} is a view of another one')
        return Storage(identity[2], identity[1], identity[4])


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    check(isinstance(storage, Storage), 'a tensor has no storage')
    check(_is_size(offset) and isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_RANK
          and all(_is_size(value) for value in shape + strides),
          f'a tensor of storage {storage.key!r} has offset {str(offset)[:40]}, shape {str(shape)[:80]} and strides {str(strides)[:80]}')
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) if math.prod(shape) else 0
    check(max(last, math.prod(shape) - 1) < max(storage.count, 1),
          f'a tensor of shape {shape}, offset {offset}, strides {strides} leaves the bounds of its storage {storage.key!r} of {storage.count}')
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad=True, hooks=None):
    check(isinstance(tensor, Tensor), 'a parameter is no tensor')
    return tensor


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 2 ** 48


def _named_tensors(tree) -> dict[str, Tensor]:
    """Tensors by the names of PyTorch's `state_dict()`."""
    if isinstance(tree, dict):
        tree = next((tree[name] for name in WRAPPERS if isinstance(tree.get(name), dict)), tree)
        check(all(isinstance(name, str) for name in tree), 'it has a tensor whose name is no text')
        strange = [name for name, value in tree.items() if not isinstance(value, Tensor)]
        check(bool(tree) and not strange, f'it is neither a module nor a dict of tensors{f" ({strange[0]!r} is none)" if strange else ""}')
        return tree
    check(isinstance(tree, Record), f'it holds a {type(tree).__name__}, not a module or a dict of tensors')
    named, seen, waiting = {}, set(), [('', tree)]
    while waiting:
        prefix, module = waiting.pop()
        check(isinstance(module, Record) and id(module) not in seen, f'{prefix or "its root"} is no module, or is there twice')
        seen.add(id(module))
        members = {group: vars(module).get(group, {}) for group in ('_parameters', '_buffers', '_modules')}
        check(all(isinstance(group, dict) and all(isinstance(name, str) for name in group) for group in members.values()),
              f'{prefix or "its root"} is no module of PyTorch')
        for name, value in (members['_parameters'] | members['_buffers']).items():
            check(value is None or isinstance(value, Tensor), f'{prefix}{name} is no tensor')
            if value is not None:
                named[prefix + name] = value
        waiting += [(f'{prefix}{name}.', child) for name, child in members['_modules'].items() if child is not None]
    return named


def _array(name: str, tensor: Tensor, storage_bytes) -> np.ndarray:
    storage, data = tensor.storage, storage_bytes(tensor.storage)
    check(len(data) == storage.count * storage.dtype.itemsize, f'storage {storage.key!r} of {name} has {len(data):,} bytes, '
          f'not {storage.count:,} numbers of {storage.dtype}')
    numbers = np.frombuffer(data, storage.dtype)[tensor.offset:]
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    return np.array(np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False), order='C')
