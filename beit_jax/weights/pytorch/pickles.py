"""A pickle of weights, read without trust: it is a program, and this reader runs none of its calls.

The standard unpickler is not used, for it sets attributes and hashes keys before one can look:
`load` knows the few operations that weights need, and every name must be in the exact lists below;
what a name stands for is never imported. Time and memory are in proportion to the operations, of
which there may be so many.
"""

import _compat_pickle
import math
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from beit_jax.errors import check

CLASSES = frozenset(  # modules and settings
    {
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
    'torch.FloatStorage': '<f4',
    'torch.DoubleStorage': '<f8',
    'torch.HalfStorage': '<f2',
    'torch.BFloat16Storage': ml_dtypes.bfloat16,
    'torch.LongStorage': '<i8',
    'torch.IntStorage': '<i4',
    'torch.ShortStorage': '<i2',
    'torch.CharStorage': 'i1',
    'torch.ByteStorage': 'u1',
    'torch.BoolStorage': '?',
}
MAX_RANK = 32
MAX_OPERATIONS = 1_000_000  # about 35 a tensor; with an optimizer's state, a large BEiT has 60,000
_TOO_LONG = f'its pickle has more than {MAX_OPERATIONS:,} operations'
# operations that push their argument, a constant, or something empty
_VALUES = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE')
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}


class Global(NamedTuple):
    """A name that a file may use; never looked up."""

    name: str


class Record:
    """An object of one of CLASSES: what the file says are its attributes."""

    def __init__(self, name: str):
        self.name, self.state = name, {}


class Storage(NamedTuple):
    """`count` numbers in a row; `key` is the name of their bytes."""

    key: str
    kind: str  # of STORAGES
    count: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(STORAGES[self.kind])


class Tensor(NamedTuple):
    """A view of a storage; sizes and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(stream) -> tuple[Any, dict[str, Storage]]:  # noqa: PLR0912, PLR0915
    """(objects, storages by key) of the pickle at which a stream stands.

    The stream is left behind it. The objects are plain values, dicts, lists, tuples, and what
    stands for all else: the classes above.

    Raises:
      RequestError: an operation or a name that weights have no need of.
      Exception: whatever a forged pickle makes the parser stumble over.
    """
    stack, marks, memo, storages = [], [], {}, {}

    def pop_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    # parses, and refuses lengths beyond the data
    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        check(number < MAX_OPERATIONS, _TOO_LONG)
        match operation.name:
            case 'PROTO' | 'FRAME':
                pass
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
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
            case 'SETITEM':
                value, key = stack.pop(), stack.pop()
                _set_items([key, value], stack[-1])
            case 'SETITEMS':
                items = pop_mark()
                _set_items(items, stack[-1])
            case 'BINPUT' | 'LONG_BINPUT':
                # in turn, as every writer numbers them: others can be made to collide in a dict
                check(argument <= number, 'it keeps its objects under strange numbers')
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


def _set_items(items: list, target) -> None:
    """Puts keys and values in turn into a dict."""
    keys, values = items[::2], items[1::2]
    check(
        type(target) is dict
        and len(keys) == len(values)
        and all(type(key) in (str, int) for key in keys),
        'it has a dict whose keys are neither text nor numbers',
    )
    for key, value in zip(keys, values):
        # one number stands for all: nothing is looked up by a number (an optimizer's state has
        # them), and their hashes can be made to collide
        target[key if type(key) is str else 0] = value


def _global(module, name) -> Global:
    check(type(module) is str and type(name) is str, 'it has a name that is no text')
    # the names of Python 2, in which the protocols before 3 write, as pickle itself translates them
    translated = _compat_pickle.IMPORT_MAPPING.get(module, module), name
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), translated)
    full, known_as = f'{module}.{name}', f' (os.{name})' if module in ('posix', 'nt') else ''
    check(
        full in CLASSES or full in CALLS or full in STORAGES,
        f'it names {printable(full + known_as)}, which weights have no need of',
    )
    return Global(full)


def _reference(identity, storages: dict[str, Storage]) -> Storage | Global:
    """What stands for a storage.

    In the legacy format also for a class, beside which its source text is kept.
    """
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
    shown = printable(key)
    check(len(rest) == 1 or rest[1] is None, f'storage {shown} is a view of another one')
    storage = Storage(key, kind.name, rest[0])
    there = storages.setdefault(key, storage)
    check(there == storage, f'storage {shown} is there in two forms')
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
    of_storage = f'a tensor of storage {printable(storage.key)}'
    check(
        type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_RANK,
        f'{of_storage} has shape and strides that do not fit each other',
    )
    for value in (offset, *shape, *strides):
        number = str(value)[:40] if type(value) in (int, float) else 'that is no number'
        check(_is_size(value), f'{of_storage} has the offset, size or stride {number}')
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    check(
        not count or max(last, count - 1) < storage.count,
        f'a tensor of shape {shape}, offset {offset}, strides {strides} leaves the bounds '
        f'of its storage {printable(storage.key)} of {storage.count}',
    )
    check(not metadata, f'{of_storage} is a conjugate or negative view')
    return Tensor(storage, offset, shape, strides)


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 2**48


def printable(text) -> str:
    """Untrusted text as a message may show it: on one line, short."""
    return ascii(str(text))[1:-1][:120]
