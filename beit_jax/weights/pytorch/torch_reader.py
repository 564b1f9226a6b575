"""Files of torch.save, read without PyTorch and without trust.

`torch.save` writes a pickle of the objects and, beside it, the bytes of the tensors: in a zip
archive, or one after the other (the legacy format of torch before 1.6). `pickles` reads the one
without running it; here tensors are made of the other by NumPy, once their bytes, offsets and
strides have been checked.
"""

from collections.abc import Callable
import functools
import io
import math
from pathlib import Path
from typing import Any
import zipfile

import numpy as np

from beit_jax.errors import RequestError, check, of_storage
from beit_jax.weights.arrays import check_weights
from beit_jax.weights.pytorch.pickles import Record, Storage, Tensor, load, printable

# under which a file may keep its tensors, best first
WRAPPERS = ('weights', 'model', 'module', 'state_dict', 'model_ema', 'state_dict_ema')
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_TENSORS, MAX_DEPTH, MAX_NAME = 10_000, 64, 500
MAX_PICKLE = 32 << 20  # bytes; text may take four times as much
ZIP_ENTRY = b'PK\x01\x02'


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of `read_torch_file` alone."""
    return read_torch_file(path)[0]


def read_torch_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict, tuple[str, ...]]:
    """A file of `torch.save`: a state dict (also under a name of WRAPPERS) or a whole module.

    Returns:
      (arrays by the names that PyTorch's `state_dict()` gives them and, of a module, the buffers
        that it leaves out; what is said beside them, see `_arguments`; names of WRAPPERS under
        which there are other tensors, such as a moving average).

    Raises:
      RequestError: not such a file, damaged, or it names or does anything that weights have no need
        of.
      StorageError: it cannot be read now.
    """
    check_weights(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise of_storage(error, f'{path} cannot be read: {error.strerror}.') from error
    try:
        return _read(data)
    except RequestError as error:
        raise RequestError(f'{path} is refused: {error}. Nothing in it was run.') from error
    except Exception as error:  # whatever a forged file makes the parsers stumble over
        raise RequestError(
            f'{path} cannot be read as a file of torch.save ({type(error).__name__}: '
            f'{printable(error)}): it is damaged or truncated, or something else. Nothing in it '
            'was run.'
        ) from error


def _read(data: bytes):
    tree, read_storage = _open_zip(data) if data.startswith(b'PK\x03\x04') else _open_legacy(data)
    tensors = _named_tensors(tree)
    size = 0
    for tensor in tensors.values():
        size += math.prod(tensor.shape) * tensor.storage.dtype.itemsize
    check(
        size <= 2 * len(data), f'its tensors would take {size:,} bytes, the file has {len(data):,}'
    )
    arrays = {name: _array(name, tensor, read_storage) for name, tensor in tensors.items()}
    return arrays, _arguments(tree), tuple(_wrappers(tree)[1:])


def _open_zip(data: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """(objects, reader of the bytes of a storage)."""
    count = data.count(ZIP_ENTRY)  # before an object is made of each
    check(count <= 10 * MAX_TENSORS, f'the archive has {count:,} entries')
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    check(len(entries) == len(archive.infolist()), 'two entries of the archive have the same name')
    check(
        not any('/code/__torch__' in name for name in entries),
        'it is a program of TorchScript, not weights alone: write these with '
        'torch.save(torch.jit.load(FILE).state_dict(), OTHER)',
    )
    for name, entry in entries.items():
        check(
            entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size,
            f'its entry {printable(name)} is compressed ({entry.compress_size:,} bytes to '
            f'{entry.file_size:,}); torch.save never does that',
        )
    total = sum(entry.file_size for entry in entries.values())
    check(total <= len(data), f'its entries claim {total:,} bytes, the file has {len(data):,}')
    pickles = [name for name in entries if name.endswith('/data.pkl') and name.count('/') == 1]
    check(len(pickles) == 1, 'the archive is not of torch.save: it has no single data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    order = archive.read(root + 'byteorder') if root + 'byteorder' in entries else b'little'
    check(order == b'little', 'its byte order is not little')
    size = entries[pickles[0]].file_size
    check(size <= MAX_PICKLE, f'its pickle has {size:,} bytes, more than {MAX_PICKLE:,}')
    tree, _ = load(io.BytesIO(archive.read(pickles[0])))

    @functools.cache  # many tensors may share one
    def read_storage(storage):
        name = f'{root}data/{storage.key}'
        check(name in entries, f'it has no entry {printable(name)}')
        return archive.read(name)

    return tree, read_storage


def _open_legacy(data: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    """(objects, reader of the bytes of a storage).

    Five pickles: magic, version, system, objects, keys; then each storage: count, bytes.
    """
    stream = io.BytesIO(data[:MAX_PICKLE])
    check(load(stream)[0] == LEGACY_MAGIC, 'it is a plain pickle, not a file of torch.save')
    (_, _), (system, _), (tree, storages), (keys, _) = (load(stream) for _ in range(4))
    little = type(system) is dict and system.get('little_endian') is True
    check(little, 'its byte order is not little')
    check(
        type(keys) is list and all(type(key) is str and key in storages for key in keys),
        'its list of storages names one of unknown type',
    )
    start, places = stream.tell(), {}
    for key in keys:
        count = int.from_bytes(data[start : start + 8], 'little', signed=True)
        size = count * storages[key].dtype.itemsize
        check(
            0 <= size <= len(data) - start - 8,
            f'storage {printable(key)} claims {count:,} numbers, more than the file holds',
        )
        places[key] = slice(start + 8, start + 8 + size)
        start += 8 + size

    @functools.cache
    def read_storage(storage):
        check(storage.key in places, f'it has no storage {printable(storage.key)}')
        return data[places[storage.key]]

    return tree, read_storage


def _named_tensors(tree) -> dict[str, Tensor]:
    """Tensors by the names of PyTorch's `state_dict()`."""
    if type(tree) is not dict:
        kind = type(tree).__name__
        check(type(tree) is Record, f'it holds a {kind}, not a module or a dict of tensors')
        return _tensors_of_module(tree)
    tree = next((tree[name] for name in _wrappers(tree)), tree)
    strange = ''
    for name, value in tree.items():
        if type(name) is not str or type(value) is not Tensor:
            strange = strange or f' ({printable(name)} is none)'
    check(bool(tree) and not strange, f'it is neither a module nor a dict of tensors{strange}')
    return tree


def _tensors_of_module(root: Record) -> dict[str, Tensor]:
    named, seen, waiting = {}, set(), [('', root)]
    while waiting:
        prefix, module = waiting.pop()
        check(
            prefix.count('.') <= MAX_DEPTH
            and len(prefix) <= MAX_NAME
            and len(named) + len(waiting) <= MAX_TENSORS,
            'it has too many modules or tensors',
        )
        where = printable(prefix) or 'its root'
        check(
            type(module) is Record and id(module) not in seen,
            f'{where} is no module, or is there twice',
        )
        seen.add(id(module))
        groups = [module.state.get(name, {}) for name in ('_parameters', '_buffers', '_modules')]
        for group in groups:
            # of two modules that share one, each would be as much work as the first
            check(
                type(group) is dict
                and (not group or id(group) not in seen)
                and all(type(name) is str and len(name) <= MAX_NAME for name in group),
                f'{where} is no module of PyTorch',
            )
            seen.add(id(group))
        parameters, buffers, modules = groups
        for name, value in (parameters | buffers).items():
            check(
                value is None or type(value) is Tensor, f'{printable(prefix + name)} is no tensor'
            )
            if value is not None:
                named[prefix + name] = value
        for name, child in modules.items():
            if child is not None:
                waiting.append((f'{prefix}{name}.', child))
    return named


def _wrappers(tree) -> list[str]:
    """Names of WRAPPERS under which a file has a dict."""
    return [name for name in WRAPPERS if type(tree) is dict and type(tree.get(name)) is dict]


def _arguments(tree) -> dict:
    """What is said beside the tensors: numbers, texts, truth values and Nones by name.

    The official code keeps an `argparse.Namespace` of what it was called with as `args`;
    mmsegmentation has a dict `meta` instead, of which `CLASSES`, names in a list, and the text of
    its `config` are taken.
    """
    if type(tree) is not dict:
        return {}
    plain, args, meta = {}, tree.get('args'), tree.get('meta')
    if type(args) is Record and args.name == 'argparse.Namespace':
        for name, value in args.state.items():
            if type(name) is str and (value is None or type(value) in (bool, int, float, str)):
                plain[name] = value
    if type(meta) is dict:
        classes, config = meta.get('CLASSES'), meta.get('config')
        if type(classes) in (list, tuple) and all(type(name) is str for name in classes):
            plain['CLASSES'] = list(classes)
        if type(config) is str:
            plain['config'] = config
    return plain


def _array(name: str, tensor: Tensor, read_storage: Callable[[Storage], bytes]) -> np.ndarray:
    storage, dtype = tensor.storage, tensor.storage.dtype
    data = read_storage(storage)
    check(
        len(data) == storage.count * dtype.itemsize,
        f'storage {printable(storage.key)} of {printable(name)} has {len(data):,} bytes, '
        f'not {storage.count:,} numbers of {dtype}',
    )
    numbers = np.frombuffer(data, dtype)[tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
    return np.array(view, order='C')
