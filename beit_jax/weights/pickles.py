"""PyTorch files without PyTorch and without trust: a pickle is a program, and this reader runs none
of its calls.

`torch.save` writes a pickle of the objects and, beside it, the bytes of the tensors: in a zip
archive, or one after the other (the legacy format of torch before 1.6). The standard unpickler is
not used, for it sets attributes and hashes keys before one can look: `_load` knows the few
operations that weights need, and every name must be in the exact lists below; what a name stands
for is never imported. Tensors are made by NumPy, once their bytes, offsets and strides have been
checked.
"""

import _compat_pickle
import functools
import io
import math
from pathlib import Path
import pickletools
import typing
import zipfile

import ml_dtypes
import numpy as np

from beit_jax.errors import RequestError, check

CLASSES = frozenset(
    {  # modules and settings
        'dall_e.encoder.Encoder',
        'dall_e.encoder.EncoderBlock',
        'dall_e.decoder.Decoder',
        'dall_e.decoder.DecoderBlock',
        'dall_e.utils.Conv2d',
        'torch.nn.modules.container.Sequential',
        'torch.nn.modules.activation.ReLU',
        'torch.nn.modules.pooling.MaxPool2d',
        'torch.nn.modules.linear.Identity',
        'torch.nn.modules.upsampling.Upsample',
        'argparse.Namespace',
    }
)
CALLS = frozenset(
    {
        'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
        'collections.OrderedDict',
        'builtins.set',
        'torch.device',
    }
)
STORAGES = {
    f'torch.{name}Storage': kind
    for name, kind in {
        'Float': '<f4',
        'Double': '<f8',
        'Half': '<f2',
        'Long': '<i8',
        'Int': '<i4',
        'Short': '<i2',
        'Char': 'i1',
        'Byte': 'u1',
        'Bool': '?',
        'BFloat16': ml_dtypes.bfloat16,
    }.items()
}
# under which a file may keep its tensors, best first
WRAPPERS = ('weights', 'model', 'module', 'state_dict', 'model_ema', 'state_dict_ema')
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_RANK, MAX_TENSORS, MAX_DEPTH, MAX_NAME = 32, 100_000, 64, 2000


class Global(typing.NamedTuple):
    """A name that a file may use; never looked up."""

    name: str


class Record:
    """An object of one of CLASSES: what the file says are its attributes."""

    def __init__(self, name: str):
        self.name, self.state = name, {}


class Storage(typing.NamedTuple):
    """`count` numbers in a row; `key` is the name of their bytes."""

    key: str
    kind: str  # of STORAGES
    count: int


class Tensor(typing.NamedTuple):
    """A view of a storage; sizes and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of `read_torch_file` alone."""
    return read_torch_file(path)[0]


def read_torch_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict, tuple[str, ...]]:
    """A file of `torch.save`: a state dict (also one level down, under a name of WRAPPERS) or a
    whole module.

    Returns:
      (arrays by the names that PyTorch's `state_dict()` gives them and, of a module, the buffers
        that it leaves out; the numbers, texts, truth values and Nones of the `argparse.Namespace`
        that the official code keeps beside them as `args`, and of mmsegmentation's `meta` the
        `CLASSES` and the text of the `config`; names of WRAPPERS under which there are other
        tensors, such as a moving average).

    Raises:
      RequestError: not such a file, damaged, or it names or does anything that weights have no need
        of.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f'{path} cannot be read: {error.strerror}.') from error
    try:
        tree, storages = _read_zip(data) if data.startswith(b'PK\x03\x04') else _read_legacy(data)
        named = _named_tensors(tree)
        size = sum(
            math.prod(tensor.shape) * _dtype(tensor.storage).itemsize for tensor in named.values()
        )
        check(
            size <= 2 * len(data),
            f'its tensors would take {size:,} bytes, the file has {len(data):,}',
        )
        return (
            {name: _array(name, tensor, storages) for name, tensor in named.items()},
            _arguments(tree),
            tuple(_wrappers(tree)[1:]),
        )
    except RequestError as error:
        raise RequestError(f'{path} is refused: {error}. Nothing in it was run.') from error
    except Exception as error:  # whatever a forged file makes the parsers stumble over
        raise RequestError(
            f'{path} cannot be read as a file of torch.save ({type(error).__name__}: '
            f'{_shown(error)}): it is damaged or truncated, or something else. Nothing in it was '
            'run.'
        ) from error


def _read_zip(data: bytes):
    """(objects, reader of the bytes of a storage)."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    check(len(entries) == len(archive.infolist()), 'two entries of the archive have the same name')
    for name, entry in entries.items():
        check(
            entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size,
            f'its entry {_shown(name)} is compressed ({entry.compress_size:,} bytes to '
            f'{entry.file_size:,}); torch.save never does that',
        )
    total = sum(entry.file_size for entry in entries.values())
    check(total <= len(data), f'its entries claim {total:,} bytes, the file has {len(data):,}')
    pickles = [name for name in entries if name.endswith('/data.pkl') and name.count('/') == 1]
    check(len(pickles) == 1, 'the archive is not of torch.save: it has no single data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    order = archive.read(root + 'byteorder') if root + 'byteorder' in entries else b'little'
    check(order == b'little', 'its byte order is not little')
    tree, _ = _load(io.BytesIO(archive.read(pickles[0])))

    @functools.cache  # many tensors may share one
    def storage_bytes(storage):
        name = f'{root}data/{storage.key}'
        check(name in entries, f'it has no entry {_shown(name)}')
        return archive.read(name)

    return tree, storage_bytes


def _read_legacy(data: bytes):
    """(objects, reader of the bytes of a storage). Five pickles: magic, version, system, objects,
    keys; then each storage: count, bytes."""
    stream = io.BytesIO(data)
    check(_load(stream)[0] == LEGACY_MAGIC, 'it is a plain pickle, not a file of torch.save')
    (_, _), (system, _), (tree, storages), (keys, _) = (_load(stream) for _ in range(4))
    check(
        type(system) is dict and system.get('little_endian') is True, 'its byte order is not little'
    )
    check(
        type(keys) is list and all(type(key) is str and key in storages for key in keys),
        'its list of storages names one of unknown type',
    )
    start, places = stream.tell(), {}
    for key in keys:
        count = int.from_bytes(data[start : start + 8], 'little', signed=True)
        size = count * _dtype(storages[key]).itemsize
        check(
            0 <= size <= len(data) - start - 8,
            f'storage {_shown(key)} claims {count:,} numbers, more than the file holds',
        )
        places[key] = slice(start + 8, start + 8 + size)
        start += 8 + size

    @functools.cache
    def storage_bytes(storage):
        check(storage.key in places, f'it has no storage {_shown(storage.key)}')
        return data[places[storage.key]]

    return tree, storage_bytes


def _load(stream):  # noqa: PLR0912, PLR0915 (one case an operation)
    """(objects, storages by key) of the pickle at which a stream stands; leaves the stream behind
    it."""
    stack, marks, memo, storages = [], [], {}, {}

    def pop_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def add(items, target):
        check(
            type(target) is dict
            and len(items) % 2 == 0
            and all(type(key) in (str, int) for key in items[::2]),
            'it has a dict whose keys are neither text nor numbers',
        )
        target.update(zip(items[::2], items[1::2]))

    # parses, and refuses lengths beyond the data
    for operation, argument, _ in pickletools.genops(stream):
        match operation.name:
            case 'PROTO' | 'FRAME':
                pass
            case (
                'BININT'
                | 'BININT1'
                | 'BININT2'
                | 'LONG1'
                | 'BINFLOAT'
                | 'BINUNICODE'
                | 'SHORT_BINUNICODE'
            ):
                stack.append(argument)
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[operation.name])
            case 'EMPTY_DICT' | 'EMPTY_LIST' | 'EMPTY_TUPLE':
                stack.append(
                    {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}[operation.name]()
                )
            case 'MARK':
                marks.append(len(stack))
            case 'TUPLE':
                stack.append(tuple(pop_mark()))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                size = int(operation.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case 'APPEND' | 'APPENDS':
                items = pop_mark() if operation.name == 'APPENDS' else [stack.pop()]
                check(type(stack[-1]) is list, 'it adds to what is no list')
                stack[-1].extend(items)
            case 'SETITEM' | 'SETITEMS':
                items = (
                    pop_mark() if operation.name == 'SETITEMS' else [stack.pop(), stack.pop()][::-1]
                )
                add(items, stack[-1])
            case 'BINPUT' | 'LONG_BINPUT':
                memo[argument] = stack[-1]
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(memo[argument])
            case 'GLOBAL' | 'INST':
                stack.append(_global(*argument.split(' ', 1)))
            case 'STACK_GLOBAL':
                name, module = stack.pop(), stack.pop()
                stack.append(_global(module, name))
            case 'BINPERSID':
                stack.append(_reference(stack.pop(), storages))
            case 'NEWOBJ':
                arguments, what = stack.pop(), stack.pop()
                check(
                    type(what) is Global and what.name in CLASSES and arguments == (),
                    'it makes an object in an unknown way',
                )
                stack.append(Record(what.name))
            case 'REDUCE':
                arguments, what = stack.pop(), stack.pop()
                check(
                    type(what) is Global and what.name in CALLS and type(arguments) is tuple,
                    'it calls what is no call of weights',
                )
                stack.append(_stand_in(what.name, arguments))
            case 'BUILD':
                state, target = stack.pop(), stack[-1]
                check(
                    type(state) is dict and type(target) in (Record, dict),
                    'it gives attributes to what has none',
                )
                if type(target) is Record:  # those of an OrderedDict do not matter
                    target.state = state
            case 'STOP':
                return stack.pop(), storages
            case name:
                check(False, f'its pickle has the operation {name}, which weights have no need of')
    raise EOFError('no end')


def _global(module, name) -> Global:
    check(type(module) is str and type(name) is str, 'it has a name that is no text')
    # the names of Python 2, in which the protocols before 3 write, as pickle itself translates them
    module, name = _compat_pickle.NAME_MAPPING.get(
        (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
    )
    full, known_as = f'{module}.{name}', f' (os.{name})' if module in ('posix', 'nt') else ''
    check(
        full in CLASSES or full in CALLS or full in STORAGES,
        f'it names {_shown(full + known_as)}, which weights have no need of',
    )
    return Global(full)


def _reference(identity, storages) -> Storage | Global:
    """What stands for a storage; in the legacy format also for a class, beside which its source
    text is kept."""
    check(type(identity) is tuple and len(identity) >= 4, 'it has a reference that is no storage')
    what, kind, key, _, *rest = identity
    if type(what) is str and what == 'module' and type(kind) is Global and kind.name in CLASSES:
        return kind
    check(
        type(what) is str
        and what == 'storage'
        and type(kind) is Global
        and kind.name in STORAGES
        and type(key) is str
        and len(rest) in (1, 2)
        and _is_size(rest[0]),
        'it has a reference that is no storage',
    )
    check(len(rest) == 1 or rest[1] is None, f'storage {_shown(key)} is a view of another one')
    storage = Storage(key, kind.name, rest[0])
    check(
        storages.setdefault(key, storage) == storage, f'storage {_shown(key)} is there in two forms'
    )
    return storage


def _stand_in(name: str, arguments: tuple):
    """What a call would have made, as far as weights go."""
    if name == 'torch._utils._rebuild_tensor_v2':
        check(5 <= len(arguments) <= 7, 'a tensor is not made as torch makes it')
        return _tensor(*arguments[:4], *arguments[6:])
    if name == 'torch._utils._rebuild_parameter':
        check(bool(arguments) and type(arguments[0]) is Tensor, 'a parameter is no tensor')
        return arguments[0]
    if name == 'collections.OrderedDict':
        check(not arguments, 'an OrderedDict is not made as torch makes it')
        return {}
    return Record(name)  # a device, or a set of names


def _tensor(storage, offset, shape, strides, metadata=None) -> Tensor:
    check(type(storage) is Storage, 'a tensor has no storage')
    check(
        type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_RANK,
        f'a tensor of storage {_shown(storage.key)} has shape and strides that do not fit each '
        'other',
    )
    for value in (offset, *shape, *strides):
        check(
            _is_size(value),
            f'a tensor of storage {_shown(storage.key)} has the offset, size or stride '
            + (str(value)[:40] if type(value) in (int, float) else 'that is no number'),
        )
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    check(
        not count or max(last, count - 1) < storage.count,
        f'a tensor of shape {shape}, offset {offset}, strides {strides} leaves the bounds '
        f'of its storage {_shown(storage.key)} of {storage.count}',
    )
    check(
        not metadata, f'a tensor of storage {_shown(storage.key)} is a conjugate or negative view'
    )
    return Tensor(storage, offset, shape, strides)


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _shown(text) -> str:
    """Untrusted text as a message may show it: on one line, short."""
    return ascii(str(text))[1:-1][:120]


def _named_tensors(tree) -> dict[str, Tensor]:
    """Tensors by the names of PyTorch's `state_dict()`."""
    if type(tree) is dict:
        tree = next((tree[name] for name in _wrappers(tree)), tree)
        strange = [
            name
            for name, value in tree.items()
            if type(name) is not str or type(value) is not Tensor
        ]
        check(
            bool(tree) and not strange,
            'it is neither a module nor a dict of '
            f'tensors{f" ({_shown(strange[0])} is none)" if strange else ""}',
        )
        return tree
    check(
        type(tree) is Record, f'it holds a {type(tree).__name__}, not a module or a dict of tensors'
    )
    named, seen, waiting = {}, set(), [('', tree)]
    while waiting:
        prefix, module = waiting.pop()
        check(
            prefix.count('.') <= MAX_DEPTH
            and len(prefix) <= MAX_NAME
            and len(named) <= MAX_TENSORS,
            'it has too many modules or tensors',
        )
        where = _shown(prefix) or 'its root'
        check(
            type(module) is Record and id(module) not in seen,
            f'{where} is no module, or is there twice',
        )
        seen.add(id(module))
        members = {
            group: module.state.get(group, {}) for group in ('_parameters', '_buffers', '_modules')
        }
        check(
            all(
                type(group) is dict and all(type(name) is str for name in group)
                for group in members.values()
            ),
            f'{where} is no module of PyTorch',
        )
        for name, value in (members['_parameters'] | members['_buffers']).items():
            check(value is None or type(value) is Tensor, f'{_shown(prefix + name)} is no tensor')
            if value is not None:
                named[prefix + name] = value
        waiting += [
            (f'{prefix}{name}.', child)
            for name, child in members['_modules'].items()
            if child is not None
        ]
    return named


def _wrappers(tree) -> list[str]:
    """Names of WRAPPERS under which a file has a dict."""
    return [name for name in WRAPPERS if type(tree) is dict and type(tree.get(name)) is dict]


def _arguments(tree) -> dict:
    """What the official code was called with: the plain values of the Namespace `args`, {} where
    there is none. mmsegmentation has a dict `meta` instead: its `CLASSES`, names in a list, and the
    text of its `config`."""
    args = tree.get('args') if type(tree) is dict else None
    state = args.state if type(args) is Record and args.name == 'argparse.Namespace' else {}
    plain = {
        name: value
        for name, value in state.items()
        if type(name) is str and (value is None or type(value) in (bool, int, float, str))
    }
    meta = tree.get('meta') if type(tree) is dict and type(tree.get('meta')) is dict else {}
    classes, config = meta.get('CLASSES'), meta.get('config')
    if type(classes) in (list, tuple) and all(type(name) is str for name in classes):
        plain['CLASSES'] = list(classes)
    return plain | ({'config': config} if type(config) is str else {})


def _dtype(storage: Storage) -> np.dtype:
    return np.dtype(STORAGES[storage.kind])


def _array(name: str, tensor: Tensor, storage_bytes) -> np.ndarray:
    storage, data, dtype = tensor.storage, storage_bytes(tensor.storage), _dtype(tensor.storage)
    check(
        len(data) == storage.count * dtype.itemsize,
        f'storage {_shown(storage.key)} of {_shown(name)} has {len(data):,} bytes, '
        f'not {storage.count:,} numbers of {dtype}',
    )
    numbers = np.frombuffer(data, dtype)[tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.array(
        np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False), order='C'
    )
