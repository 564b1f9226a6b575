"""Safetensors files: written as the umask says, and what is refused in a line."""

import json
import os
import struct

import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.weights.arrays import read_arrays, write_arrays
from beit_jax.weights.load import load_weights
from beit_jax.weights.tokenizer import load_tokenizer

# name: bytes of four numbers
OTHER_DTYPES = {'F8_E4M3': 4, 'F8_E5M2': 4, 'F8_E8M0': 4, 'F4': 2, 'F6_E2M3': 3, 'F6_E3M2': 3}


def written(path, dtype, size):
    header = {'w': {'dtype': dtype, 'shape': [4], 'data_offsets': [0, size]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(size))
    return path


@pytest.mark.parametrize('dtype', OTHER_DTYPES)
def test_numbers_that_numpy_does_not_have(dtype, tmp_path, tokenizer_dir):
    path = written(tmp_path / 'model.safetensors', dtype, OTHER_DTYPES[dtype])
    with pytest.raises(RequestError, match=r'model.safetensors (holds numbers|cannot be read)'):
        load_weights(str(path))
    written(tmp_path / 'tokenizer.safetensors', dtype, OTHER_DTYPES[dtype])
    (tmp_path / 'tokenizer.json').write_text((tokenizer_dir / 'tokenizer.json').read_text())
    with pytest.raises(RequestError, match=r'tokenizer.safetensors (holds numbers|cannot be read)'):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_the_umask_says(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_arrays(tmp_path / 'a.safetensors', {'w': np.arange(3.0)}, {'of': 'it'})
    finally:
        os.umask(before)
    assert (tmp_path / 'a.safetensors').stat().st_mode & 0o777 == mode
    arrays, header = read_arrays(tmp_path / 'a.safetensors')
    assert list(arrays['w']) == [0, 1, 2] and header == {'of': 'it'}


POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 350\n'
STRANGERS = {
    'a pointer': (POINTER, r'is a pointer of Git LFS.*`git lfs pull`'),
    'a page': (b'\n<!DOCTYPE html><html>', r'is a web page.*download the file itself'),
}


@pytest.mark.parametrize('file', ['model.safetensors', 'beit.pth', 'pytorch_model.bin'])
@pytest.mark.parametrize('name', STRANGERS)
def test_what_is_taken_for_weights(name, file, tmp_path):
    data, message = STRANGERS[name]
    (tmp_path / file).write_bytes(data)
    for path in (tmp_path, tmp_path / file):
        with pytest.raises(RequestError, match=rf'{file} {message}'):
            load_weights(str(path))


@pytest.mark.parametrize('name', ['nowhere', '/no/where', 'runs/w/checkpoints', 'a/b.pth', './w'])
def test_names_that_are_no_names_of_the_hub(name):
    with pytest.raises(RequestError, match=r'there is no .*of weights.$'):
        load_weights(name)


def test_mmpretrain(tmp_path):
    names = ('backbone.cls_token', 'backbone.layers.0.attn.qkv.weight', 'head.layers.head.weight')
    arrays = {name: np.zeros((3, 5), np.float32) for name in names}
    write_arrays(tmp_path / 'model.safetensors', arrays)
    with pytest.raises(RequestError, match=r'the names of mmpretrain .*official code, timm or'):
        load_weights(str(tmp_path))
