"""The kernel of a residual block, interpreted, against torch's convolutions."""

import math

import jax
import numpy as np
import pytest
import torch

from beit_jax.models.tokenizers import fused_block as module
from beit_jax.models.tokenizers.fused_block import fits, fused_block
from beit_jax.settings.run import MeshConfig
from beit_jax.train.sharding import make_mesh, on_mesh, put_batch

CHANNELS, HIDDEN, GAIN = 24, 5, 0.37


def weights(rng):
    first, last = (3, 3, CHANNELS, HIDDEN), (1, 1, HIDDEN, CHANNELS)
    shapes = [first, (3, 3, HIDDEN, HIDDEN), (3, 3, HIDDEN, HIDDEN), last]
    draw = lambda shape: rng.standard_normal(shape, np.float32)
    kernels = [draw(shape) / math.sqrt(math.prod(shape[:3])) for shape in shapes]
    return kernels, [draw(shape[-1:]) for shape in shapes]


def expected(x_BHWC, kernels, biases):
    x_BCHW = y_BCHW = torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2))
    for kernel_HWIO, bias in zip(kernels, map(torch.from_numpy, biases)):
        kernel = torch.from_numpy(kernel_HWIO.transpose(3, 2, 0, 1))
        y_BCHW = torch.nn.functional.conv2d(y_BCHW.relu(), kernel, bias, padding='same')
    return (x_BCHW + GAIN * y_BCHW).permute(0, 2, 3, 1).numpy()


# one band of 3 pairs of rows, of 7; two of 6; three of 5
@pytest.mark.parametrize(('height', 'width'), [(6, 7), (14, 5), (24, 11), (30, 3)])
def test_block(height, width, monkeypatch):
    monkeypatch.setitem(module._BAND, 4, range(7, 2, -1))
    rng = np.random.default_rng(0)
    x_BHWC = rng.standard_normal((3, height, width, CHANNELS), np.float32)
    kernels, biases = weights(rng)
    found = fused_block(x_BHWC, kernels, biases, GAIN, interpret=True)
    np.testing.assert_allclose(found, expected(x_BHWC, kernels, biases), atol=1e-5)


def test_three_products_for_one():
    """What bfloat16 leaves of a factor is multiplied too: a hundred times closer than without."""
    rng = np.random.default_rng(0)
    x_BHWC, (kernels, biases) = rng.standard_normal((3, 24, 5, CHANNELS), np.float32), weights(rng)
    found = fused_block(x_BHWC, kernels, biases, GAIN, 'bfloat16_3x', interpret=True)
    difference = np.abs(found - expected(x_BHWC, kernels, biases)).max()
    assert 1e-6 < difference < 5e-5, difference


def test_each_device_of_a_mesh_has_its_pictures():
    rng = np.random.default_rng(0)
    x_BHWC, (kernels, biases) = rng.standard_normal((16, 6, 3, CHANNELS), np.float32), weights(rng)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    block = jax.jit(on_mesh(mesh, lambda x: fused_block(x, kernels, biases, GAIN, interpret=True)))
    found = block(put_batch(mesh, {'x': x_BHWC}, 16)['x'])
    assert {shard.data.shape for shard in found.addressable_shards} == {(2, 6, 3, CHANNELS)}
    np.testing.assert_allclose(found, expected(x_BHWC, kernels, biases), atol=1e-5)


@pytest.mark.parametrize(
    ('shape', 'hidden', 'dtype', 'fitting'),
    [
        ((2, 112, 112, 256), 64, 'float32', True),
        ((2, 112, 112, 256), 64, 'bfloat16', True),
        ((2, 192, 192, 256), 64, 'float32', True),
        ((2, 14, 16, 128), 64, 'bfloat16', True),
        ((2, 14, 16, 128), 64, 'float32', False),
        ((2, 56, 56, 512), 128, 'bfloat16', False),
        ((2, 112, 120, 256), 64, 'float32', False),
        ((2, 111, 112, 256), 64, 'float32', False),
        ((2, 112, 112, 200), 64, 'float32', False),
    ],
)
def test_which_pictures_it_takes(shape, hidden, dtype, fitting):
    assert fits(jax.ShapeDtypeStruct(shape, dtype), hidden) is fitting
