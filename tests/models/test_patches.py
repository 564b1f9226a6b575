"""Patches against plain indexing."""

import numpy as np

from beit_jax.models.patches import patchify, unpatchify


def test_patchify():
    images_BHWC = np.random.default_rng(0).normal(size=(2, 21, 35, 3)).astype(np.float32)
    expected = np.zeros((2, 3 * 5, 7 * 7 * 3), np.float32)
    for picture, row, column, y, x, channel in np.ndindex(2, 3, 5, 7, 7, 3):
        patch, value = row * 5 + column, (y * 7 + x) * 3 + channel
        pixel = images_BHWC[picture, row * 7 + y, column * 7 + x, channel]
        expected[picture, patch, value] = pixel
    np.testing.assert_array_equal(patchify(images_BHWC, 7), expected)
    np.testing.assert_array_equal(unpatchify(expected, (3, 5)), images_BHWC)
