"""Convolutions on pairs of columns against torch's on pixels."""
import jax
import numpy as np
import pytest
import torch

from beit_jax.models.tokenizers.pairs import pair_kernel, pool_pairs, to_pairs


def _torch(images_BHWC):
    return torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (3, 3), (5, 5), (7, 7), (1, 9)])
def test_convolution(rows, columns):
    rng = np.random.default_rng(0)
    images_BHWC, kernel = rng.standard_normal((2, 11, 14, 3), np.float32), rng.standard_normal((rows, columns, 3, 5), np.float32)
    expected = torch.nn.functional.conv2d(_torch(images_BHWC), torch.from_numpy(kernel.transpose(3, 2, 0, 1)), padding='same')
    pairs = jax.lax.conv_general_dilated(to_pairs(images_BHWC), pair_kernel(kernel), (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    assert pairs.shape == (2, 11, 7, 10)
    np.testing.assert_allclose(pairs.reshape(2, 11, 14, 5), expected.permute(0, 2, 3, 1), atol=1e-5)


def test_pool():
    images_BHWC = np.random.default_rng(0).standard_normal((2, 22, 14, 5), np.float32)
    expected = torch.nn.functional.max_pool2d(_torch(images_BHWC), 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(pool_pairs(to_pairs(images_BHWC)), expected)
