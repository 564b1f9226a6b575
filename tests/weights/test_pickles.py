"""Files of torch.save, read without torch: honest ones against torch itself, forged ones refused by
name and never run."""

import argparse
import collections
import io
import os
import pickle
import struct
import subprocess
import zipfile

import dall_e
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.weights.pickles import read_tensors

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def save(objects, path, zipped=True):
    torch.save(objects, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
@pytest.mark.parametrize(
    'module',
    [dall_e.Encoder(n_hid=64, vocab_size=521), dall_e.Decoder(n_hid=64, n_init=13, vocab_size=521)],
    ids=['encoder', 'decoder'],
)
def test_whole_modules(module, zipped, tmp_path):
    tensors = read_tensors(save(module, tmp_path / 'm.pkl', zipped))
    expected = {name: value.numpy() for name, value in module.state_dict().items()}
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)


@FORMATS
@pytest.mark.parametrize('wrapped', [False, True])
def test_every_dtype_and_view(zipped, wrapped, tmp_path):
    base = torch.arange(105.0).reshape(3, 5, 7)
    state = {
        str(dtype): torch.arange(7).to(dtype)
        for dtype in (
            torch.float32,
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    state |= {
        'transposed': base.permute(2, 0, 1),
        'slice': base[1:, ::2, 3],
        'scalar': torch.tensor(3.0),
        'empty': torch.zeros(0, 3),
        'parameter': torch.nn.Parameter(base[2]),
        'whole': base,
    }
    tree = (
        {'model': collections.OrderedDict(state), 'args': argparse.Namespace(lr=1.0)}
        if wrapped
        else state
    )
    tensors = read_tensors(save(tree, tmp_path / 's.pth', zipped))
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        assert (
            tensors[name].shape == value.shape
            and str(value.dtype) == f'torch.{tensors[name].dtype}'
        )
        np.testing.assert_array_equal(
            tensors[name].astype(np.float64), value.detach().double().numpy(), err_msg=name
        )


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(proof):
    touch = f'touch {proof}'
    return {
        'posix.system': Call(os.system, touch),
        'builtins.eval': Call(eval, f'open({str(proof)!r}, "w")'),
        'subprocess.Popen': Call(subprocess.Popen, ['touch', str(proof)]),
        'builtins.exec': Call(exec, f'open({str(proof)!r}, "w")'),
        'builtins.getattr': Call(getattr, 'text', 'upper'),
        'io.open': Call(open, str(proof), 'w'),
    }


@pytest.mark.parametrize('place', ['alone', 'nested', 'legacy', 'plain', 'first'])
@pytest.mark.parametrize('name', payloads(''))
def test_nothing_is_run(name, place, tmp_path):
    """The proof is a file that the payload would create."""
    proof, path = tmp_path / 'proof', tmp_path / 'encoder.pkl'
    evil = payloads(proof)[name]
    if place == 'plain':
        path.write_bytes(pickle.dumps(evil))
    elif place == 'first':  # before the magic number of the legacy format
        path.write_bytes(pickle.dumps(evil, protocol=2) + b'rest')
    else:
        module = dall_e.Encoder(n_hid=64, vocab_size=512)
        module.blocks.group_1.block_1.extra = [{'deep': (evil,)}]
        save(evil if place == 'alone' else module, path, zipped=place != 'legacy')
    wanted = name.replace('.', r'\.') + (r' \(os.system\)' if name == 'posix.system' else '')
    with pytest.raises(
        RequestError,
        match=rf'encoder.pkl is refused: it names {wanted}, which.*Nothing in it was run',
    ):
        read_tensors(path)
    assert not proof.exists()
    if name == 'posix.system':  # the same file does run under pickle
        with pytest.raises(Exception), open(path, 'rb') as file:  # noqa: B017
            if place in ('plain', 'first'):
                pickle.load(file)
            else:
                torch.load(path, weights_only=False)
            raise RuntimeError('loaded')
        assert proof.exists()


@pytest.mark.parametrize(
    'name',
    [
        'os.system',
        'torch.load',
        'torch.nn.modules.container.ModuleList',
        'dall_e.load_model',
        'torch.hub.load',
        'numpy.core.multiarray.scalar',
        'torch.storage._load_from_bytes',
    ],
)
def test_the_list_is_exact(name, tmp_path):
    module, _, function = name.rpartition('.')
    data = f'c{module}\n{function}\n(X\x04\x00\x00\x00argstR.'.encode('latin1')
    with pytest.raises(RequestError, match=rf'it names {name.replace(".", chr(92) + ".")}, which'):
        read_tensors(archive(tmp_path, data))


def archive(tmp_path, data, entries=None, **options):
    path = tmp_path / 'forged.pth'
    with zipfile.ZipFile(path, 'w', **options) as file:
        file.writestr('archive/data.pkl', data)
        for name, value in (
            entries or {'archive/data/0': np.arange(12, dtype=np.float32).tobytes()}
        ).items():
            file.writestr(name, value)
    return path


def forged_tensor(offset, shape, strides, count=12, key='0', kind='FloatStorage'):
    """A pickle of {'w': tensor} as torch writes it, with numbers of our choice."""
    out = io.BytesIO()

    class Forger(pickle._Pickler):
        def persistent_id(self, obj):
            return (
                ('storage', Name('torch', kind), key, 'cpu', count)
                if isinstance(obj, Storage)
                else None
            )

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                return self.write(f'c{obj.module}\n{obj.name}\n'.encode())
            return super().save(obj, save_persistent_id)

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return Call, (Storage(), offset, shape, strides, False, collections.OrderedDict())

    pickler = Forger(out, protocol=2)
    pickler.dump({'w': Tensor()})
    name = f'c{Call.__module__}\nCall\n'.encode()
    assert name in out.getvalue()
    return out.getvalue().replace(name, b'ctorch._utils\n_rebuild_tensor_v2\n')


Name = collections.namedtuple('Name', 'module name')


def test_an_honest_forgery(tmp_path):
    """The forger itself writes what torch would: it is the numbers that are refused below."""
    tensors = read_tensors(archive(tmp_path, forged_tensor(1, (3, 2), (4, 1))))
    np.testing.assert_array_equal(tensors['w'], [[1, 2], [5, 6], [9, 10]])


@pytest.mark.parametrize(
    ('numbers', 'message'),
    [
        (
            {'offset': 13, 'shape': (1,), 'strides': (1,)},
            r'leaves the bounds of its storage 0 of 12',
        ),
        ({'offset': 0, 'shape': (13,), 'strides': (1,)}, 'leaves the bounds'),
        ({'offset': 0, 'shape': (2, 3), 'strides': (10, 1)}, 'leaves the bounds'),
        ({'offset': -1, 'shape': (3,), 'strides': (1,)}, 'offset, size or stride -1'),
        ({'offset': 11, 'shape': (3,), 'strides': (-1,)}, 'offset, size or stride -1'),
        ({'offset': 0, 'shape': (-3,), 'strides': (1,)}, 'offset, size or stride -3'),
        # a terabyte out of twelve numbers
        ({'offset': 0, 'shape': (10**12,), 'strides': (0,)}, 'leaves the bounds'),
        ({'offset': 0, 'shape': (3,), 'strides': (1, 1)}, 'strides'),
        ({'offset': 0, 'shape': (3.0,), 'strides': (1,)}, 'offset, size or stride 3.0'),
        ({'offset': 0, 'shape': (1,) * 40, 'strides': (1,) * 40}, 'shape'),
        (
            {'offset': 0, 'shape': (3,), 'strides': (1,), 'count': 2**40},
            r'has 48 bytes, not 1,099,511,627,776 numbers',
        ),
        ({'offset': 0, 'shape': (3,), 'strides': (1,), 'count': -1}, 'no storage'),
        (
            {'offset': 0, 'shape': (3,), 'strides': (1,), 'key': '../../etc/passwd'},
            'no entry archive/data/../../etc/passwd',
        ),
        (
            {'offset': 0, 'shape': (3,), 'strides': (1,), 'kind': 'ComplexFloatStorage'},
            'it names torch.ComplexFloatStorage',
        ),
    ],
)
def test_tensors_that_leave_their_bounds(numbers, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        read_tensors(archive(tmp_path, forged_tensor(**numbers)))


def test_zip_bombs(tmp_path):
    data = forged_tensor(0, (3,), (1,))
    with pytest.raises(RequestError, match=r'is compressed \([\d,]+ bytes to [\d,]+\)'):
        read_tensors(
            archive(
                tmp_path,
                data,
                {'archive/data/0': bytes(10_000_000)},
                compression=zipfile.ZIP_DEFLATED,
            )
        )
    base = torch.zeros(100_000)  # one storage, many tensors that would each copy it
    with pytest.raises(RequestError, match=r'its tensors would take [\d,]+ bytes, the file has'):
        read_tensors(save({f'view {i}': base[:] for i in range(50)}, tmp_path / 'views.pth'))
    path = archive(tmp_path, data)  # a directory that claims more than the file holds
    raw = bytearray(path.read_bytes())
    place = raw.rindex(b'PK\x01\x02')
    raw[place + 20 : place + 28] = struct.pack('<II', 2**30, 2**30)
    path.write_bytes(raw)
    with pytest.raises(RequestError, match='claim 1,073,'):
        read_tensors(path)


@pytest.mark.parametrize(
    'data',
    [
        b'\x80\x02\x96' + struct.pack('<Q', 2**50) + b'.',
        b'\x80\x02Nr\xff\xff\xff\x7f.',
        b'\x80\x02]q\x00' + b'(' * 9,
        b'I' + b'9' * 10_000 + b'\n.',
        b'\x80\x02N.',
        b'',
        b'\x80\x02}X\x01\x00\x00\x00wK\x01s.',
        b'\x80\x02K\x07.',
    ],
)
def test_other_damage(data, tmp_path):
    """A length beyond the data, an index that would take gigabytes, no end, a huge number, nothing,
    and what is no module."""
    with pytest.raises(RequestError, match=r'Nothing in it was run'):
        read_tensors(archive(tmp_path, data))
    (tmp_path / 'plain.pkl').write_bytes(data)
    with pytest.raises(RequestError, match=r'Nothing in it was run'):
        read_tensors(tmp_path / 'plain.pkl')


def tensor_then(operations, **numbers):
    """The pickle of an honest tensor with more operations on it before it is stored."""
    data = forged_tensor(**({'offset': 0, 'shape': (3,), 'strides': (1,)} | numbers))
    place = data.rindex(b'R') + 1
    return data[:place] + operations + data[place:]


FORGERIES = {
    'attributes of a tensor': (
        tensor_then(b'}X\x07\x00\x00\x00stridesM\xe8\x03\x85sb'),
        'gives attributes to what has none',
    ),
    'attributes of a storage': (
        b'\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb.',
        'gives attributes to what has none',
    ),
    'attributes of a function': (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.',
        'gives attributes to what has none',
    ),
    'attributes of a class': (
        b'\x80\x02cdall_e.utils\nConv2d\nN}X\x01\x00\x00\x00aK\x01s\x86b.',
        'gives attributes to what has none',
    ),
    'a deep key': (b'\x80\x02})' + b'\x85' * 100_000 + b'Ns.', 'keys are neither text nor numbers'),
    'a deep tree': (b'\x80\x02)' + b'\x85' * 100_000 + b'.', 'holds a tuple'),
    'a reference to such a tree': (
        b'\x80\x02)' + b''.join(b'q%ch%c\x86' % (i, i) for i in range(99)) + b'Q.',
        'reference that is no storage',
    ),
    'one number of an empty storage': (forged_tensor(0, (1,), (1,), count=0), 'leaves the bounds'),
    'a scalar of an empty storage': (forged_tensor(0, (), (), count=0), 'leaves the bounds'),
    'a call of a class': (
        b'\x80\x02cdall_e.utils\nConv2d\n)R.',
        'calls what is no call of weights',
    ),
    'a class made from a call': (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.',
        'makes an object in an unknown way',
    ),
    'an extension': (b'\x80\x02\x82\x01.', 'operation EXT1'),
    'escapes': (b'\x80\x04\x8c\x03os\n\x8c\x05\x1b[31m\x93.', r'it names os\\n.\\x1b\[31m, which'),
    'a long name': (b'c' + b'a' * 1_000_000 + b'\nb\n.', r'it names a{120}, which'),
}


@pytest.mark.parametrize('name', FORGERIES)
def test_operations_that_weights_do_not_need(name, tmp_path):
    data, message = FORGERIES[name]
    with pytest.raises(RequestError, match=message) as raised:
        read_tensors(archive(tmp_path, data))
    assert len(str(raised.value)) < 600 and str(raised.value).isprintable()
    np.testing.assert_array_equal(
        read_tensors(archive(tmp_path, forged_tensor(1, (3, 2), (4, 1))))['w'],
        [[1, 2], [5, 6], [9, 10]],
    )


def test_thousands_of_tensors_in_one_storage(tmp_path):
    base = torch.arange(1_000_000.0)
    tensors = read_tensors(save({str(i): base[i] for i in range(3000)}, tmp_path / 'many.pth'))
    assert [float(tensors[str(i)]) for i in (0, 7, 2999)] == [0, 7, 2999]


@FORMATS
def test_truncated(zipped, tmp_path):
    path = save({'w': torch.arange(1000.0), 'v': torch.ones(7)}, tmp_path / 't.pth', zipped)
    whole = path.read_bytes()
    for share in (0.01, 0.05, 0.3, 0.6, 0.95, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            RequestError,
            match=r't.pth .*(damaged or truncated|more than the file holds|no storage)',
        ):
            read_tensors(path)
    with pytest.raises(RequestError, match='cannot be read: No such file'):
        read_tensors(tmp_path / 'nowhere')


def test_a_module_inside_itself(tmp_path):
    module = torch.nn.Sequential(torch.nn.ReLU())
    module._modules['again'] = module
    with pytest.raises(RequestError, match='is no module, or is there twice'):
        read_tensors(save(module, tmp_path / 'm.pkl'))
