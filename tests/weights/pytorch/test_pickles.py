"""Forged pickles: refused by name, and never run."""

import os
import pickle
import re
import struct
import subprocess

import dall_e
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.torch_reader import read_tensors
from tests.weights.pytorch.forgeries import Call, archive, forged_tensor, save


def payloads(proof):
    touch, create = ['touch', str(proof)], f'open({str(proof)!r}, "w")'
    return {
        'posix.system': Call(os.system, ' '.join(touch)),
        'builtins.eval': Call(eval, create),
        'subprocess.Popen': Call(subprocess.Popen, touch),
        'builtins.exec': Call(exec, create),
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
    wanted = re.escape(name) + (r' \(os.system\)' if name == 'posix.system' else '')
    message = rf'encoder.pkl is refused: it names {wanted}, which.*Nothing in it was run'
    with pytest.raises(RequestError, match=message):
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
    with pytest.raises(RequestError, match=rf'it names {re.escape(name)}, which'):
        read_tensors(archive(tmp_path, data))


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
    """Lengths, indices and numbers beyond all bounds, no end, nothing, and what is no module."""
    with pytest.raises(RequestError, match=r'Nothing in it was run'):
        read_tensors(archive(tmp_path, data))
    (tmp_path / 'plain.pkl').write_bytes(data)
    with pytest.raises(RequestError, match=r'Nothing in it was run'):
        read_tensors(tmp_path / 'plain.pkl')


def tensor_then(operations):
    """The pickle of an honest tensor with more operations on it before it is stored."""
    data = forged_tensor()
    place = data.rindex(b'R') + 1
    return data[:place] + operations + data[place:]


ATTRIBUTES = b'}X\x01\x00\x00\x00aK\x01s'  # {'a': 1}
REBUILD, CONV = b'ctorch._utils\n_rebuild_tensor_v2\n', b'cdall_e.utils\nConv2d\n'
FORGERIES = {
    'attributes of a tensor': (
        tensor_then(b'}X\x07\x00\x00\x00stridesM\xe8\x03\x85sb'),
        'gives attributes to what has none',
    ),
    'attributes of a storage': (
        b'\x80\x02ctorch\nFloatStorage\n' + ATTRIBUTES + b'b.',
        'gives attributes to what has none',
    ),
    'attributes of a function': (
        b'\x80\x02' + REBUILD + ATTRIBUTES + b'b.',
        'gives attributes to what has none',
    ),
    'attributes of a class': (
        b'\x80\x02' + CONV + b'N' + ATTRIBUTES + b'\x86b.',
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
    'a call of a class': (b'\x80\x02' + CONV + b')R.', 'calls what is no call of weights'),
    'a class made from a call': (
        b'\x80\x02' + REBUILD + b')\x81.',
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
    # and the reader goes on
    tensors = read_tensors(archive(tmp_path, forged_tensor(1, (3, 2), (4, 1))))
    np.testing.assert_array_equal(tensors['w'], [[1, 2], [5, 6], [9, 10]])
