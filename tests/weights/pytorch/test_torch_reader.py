"""Files of torch.save, read without torch, against torch itself; damaged ones are refused."""

import argparse
import collections
import struct
import zipfile

import dall_e
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.torch_reader import read_tensors
from tests.weights.pytorch.forgeries import FORMATS, archive, forged_tensor, save

DTYPES = (
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
    state = {str(dtype): torch.arange(7).to(dtype) for dtype in DTYPES}
    state |= {
        'transposed': base.permute(2, 0, 1),
        'slice': base[1:, ::2, 3],
        'scalar': torch.tensor(3.0),
        'empty': torch.zeros(0, 3),
        'parameter': torch.nn.Parameter(base[2]),
        'whole': base,
    }
    tree = state
    if wrapped:
        tree = {'model': collections.OrderedDict(state), 'args': argparse.Namespace(lr=1.0)}
    tensors = read_tensors(save(tree, tmp_path / 's.pth', zipped))
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        found, wanted = tensors[name], value.detach().double().numpy()
        assert found.shape == value.shape and f'torch.{found.dtype}' == str(value.dtype)
        np.testing.assert_array_equal(found.astype(np.float64), wanted, err_msg=name)


def test_thousands_of_tensors_in_one_storage(tmp_path):
    base = torch.arange(1_000_000.0)
    tensors = read_tensors(save({str(i): base[i] for i in range(3000)}, tmp_path / 'many.pth'))
    assert [float(tensors[str(i)]) for i in (0, 7, 2999)] == [0, 7, 2999]


def test_an_honest_forgery(tmp_path):
    """The forger itself writes what torch would: it is the numbers that are refused below."""
    tensors = read_tensors(archive(tmp_path, forged_tensor(1, (3, 2), (4, 1))))
    np.testing.assert_array_equal(tensors['w'], [[1, 2], [5, 6], [9, 10]])


@pytest.mark.parametrize(
    ('numbers', 'message'),
    [
        ({'offset': 13, 'shape': (1,)}, r'leaves the bounds of its storage 0 of 12'),
        ({'shape': (13,)}, 'leaves the bounds'),
        ({'shape': (2, 3), 'strides': (10, 1)}, 'leaves the bounds'),
        ({'offset': -1}, 'offset, size or stride -1'),
        ({'offset': 11, 'strides': (-1,)}, 'offset, size or stride -1'),
        ({'shape': (-3,)}, 'offset, size or stride -3'),
        # a terabyte out of twelve numbers
        ({'shape': (10**12,), 'strides': (0,)}, 'leaves the bounds'),
        ({'strides': (1, 1)}, 'strides'),
        ({'shape': (3.0,)}, 'offset, size or stride 3.0'),
        ({'shape': (1,) * 40, 'strides': (1,) * 40}, 'shape'),
        ({'count': 2**40}, r'has 48 bytes, not 1,099,511,627,776 numbers'),
        ({'count': -1}, 'no storage'),
        ({'key': '../../etc/passwd'}, 'no entry archive/data/../../etc/passwd'),
        ({'kind': 'ComplexFloatStorage'}, 'it names torch.ComplexFloatStorage'),
    ],
)
def test_tensors_that_leave_their_bounds(numbers, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        read_tensors(archive(tmp_path, forged_tensor(**numbers)))


def test_compressed_archives(tmp_path):
    zeros = {'archive/data/0': bytes(10_000_000)}
    path = archive(tmp_path, forged_tensor(), zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(RequestError, match=r'is compressed \([\d,]+ bytes to [\d,]+\)'):
        read_tensors(path)


def test_many_copies_of_one_storage(tmp_path):
    """One storage, many tensors that would each copy it."""
    base = torch.zeros(100_000)
    path = save({f'view {i}': base[:] for i in range(50)}, tmp_path / 'views.pth')
    with pytest.raises(RequestError, match=r'its tensors would take [\d,]+ bytes, the file has'):
        read_tensors(path)


def test_a_directory_that_claims_more_than_the_file_holds(tmp_path):
    path = archive(tmp_path, forged_tensor())
    raw = bytearray(path.read_bytes())
    place = raw.rindex(b'PK\x01\x02')
    raw[place + 20 : place + 28] = struct.pack('<II', 2**30, 2**30)
    path.write_bytes(raw)
    with pytest.raises(RequestError, match='claim 1,073,'):
        read_tensors(path)


@FORMATS
def test_truncated(zipped, tmp_path):
    path = save({'w': torch.arange(1000.0), 'v': torch.ones(7)}, tmp_path / 't.pth', zipped)
    whole = path.read_bytes()
    message = r't.pth .*(damaged or truncated|more than the file holds|no storage)'
    for share in (0.01, 0.05, 0.3, 0.6, 0.95, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(RequestError, match=message):
            read_tensors(path)
    with pytest.raises(RequestError, match='cannot be read: No such file'):
        read_tensors(tmp_path / 'nowhere')


def test_a_module_inside_itself(tmp_path):
    module = torch.nn.Sequential(torch.nn.ReLU())
    module._modules['again'] = module
    with pytest.raises(RequestError, match='is no module, or is there twice'):
        read_tensors(save(module, tmp_path / 'm.pkl'))
