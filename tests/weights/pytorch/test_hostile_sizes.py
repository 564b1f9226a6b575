"""Files of torch.save that are made to take more time or memory than their size."""

import collections
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.torch_reader import read_tensors
from tests.weights.pytorch.forgeries import archive, forged_tensor, save

PRIME = 2**61 - 1  # the hash of a whole number is its remainder
MEASURE = """
import resource, sys, time
from beit_jax.errors import RequestError
from beit_jax.weights.pytorch.torch_reader import read_tensors
most = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = most(), time.process_time()
try:
    read_tensors(sys.argv[1])
except RequestError as error:
    print(error)
print(time.process_time() - start)
print(most() - before)
"""


def long(number):
    data = number.to_bytes(16, 'little')
    return b'\x8a' + bytes([len(data)]) + data


def collisions(number):
    """{'w': {0 p: None, 1 p: None, ...}}: all keys have the same hash."""
    items = b''.join(long(i * PRIME) + b'N' for i in range(number))
    return b'\x80\x02}X\x01\x00\x00\x00w}(' + items + b'us.'


def collisions_of_the_memo(number):
    """Objects kept under numbers that agree in their last 15 bits."""
    kept = b''.join(b'r' + struct.pack('<I', i << 15) for i in range(number))
    return b'\x80\x02N' + kept + b'.'


def shared_children(number):
    """Modules that share one dict of children."""
    names = b''.join(b'X\x05\x00\x00\x00%05dN' % i for i in range(number))
    start = b'ctorch.nn.modules.container\nSequential\n)\x81}X\x08\x00\x00\x00_modules'
    first = b'X\x05\x00\x00\x00first' + start + b'}q\x00(' + names + b'usb'
    others = b''.join(b'X\x05\x00\x00\x00%05d' % i + start + b'h\x00sb' for i in range(number))
    return b'\x80\x02' + start + b'}(' + first + others + b'usb.'


DICTS, TUPLES = b'\x80\x02](' + b'}' * 17_000_000 + b'e.', b'\x80\x02)' + b'\x85' * 9_000_000 + b'.'
# name: (pickle, what is said)
PICKLES = {
    'colliding keys': (collisions(100_000), 'neither a module nor a dict of tensors'),
    'colliding numbers of the memo': (collisions_of_the_memo(100_000), 'under strange numbers'),
    'dicts': (DICTS, 'more than 1,000,000 operations'),
    'deep tuples': (TUPLES, 'more than 1,000,000 operations'),
    'shared children': (shared_children(10_000), 'is no module of PyTorch'),
    'long text': (b'\x80\x02X\x00\x00\x00\x03' + bytes(3 << 24) + b'.', 'its pickle has 50,331,'),
}


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', PICKLES)
def test_time_and_memory_are_in_proportion(name, zipped, tmp_path):
    data, message = PICKLES[name]
    if zipped:
        path = archive(tmp_path, data)
    else:
        path = save({'w': torch.ones(3)}, tmp_path / 'legacy.pth', zipped=False)
        whole = path.read_bytes()
        system = whole.index(b'.', whole.index(b'little_endian')) + 1
        path.write_bytes(whole[:system] + data)
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, path], capture_output=True, text=True, check=True
    )
    said, seconds, grown = done.stdout.rsplit('\n', 3)[:3]
    assert re.search(message if zipped else 'Nothing in it was run', said)
    assert float(seconds) < 20  # one or two, and minutes where it is not so
    assert int(grown) < 2 * path.stat().st_size + 200e6


def test_an_archive_of_empty_entries(tmp_path):
    with zipfile.ZipFile(tmp_path / 'many.pth', 'w') as file:
        file.writestr('archive/data.pkl', forged_tensor())
        for i in range(100_001):
            file.writestr(f'archive/data/{i}', b'')
    with pytest.raises(RequestError, match=r'the archive has 100,002 entries'):
        read_tensors(tmp_path / 'many.pth')


def test_the_state_of_an_optimizer_is_no_obstacle(tmp_path):
    """PyTorch before 1.6 kept it under the addresses of parameters, which are numbers."""
    state = {140_234_567_890_000 + 8 * i: {'step': i, 'exp_avg': torch.ones(3)} for i in range(99)}
    weights = collections.OrderedDict(w=torch.arange(3.0))
    path = save({'model': weights, 'optimizer': {'state': state}}, tmp_path / 'old.pth')
    assert list(read_tensors(path)['w']) == [0, 1, 2]
