"""Patches against plain indexing."""

import numpy as np

from beit_jax.models.patches import patchify, unpatchify


def test_patchify():
    images_BHWC = np.random.default_rng(0).normal(size=(2, 21, 35, 3)).astype(np.float32)
    expected = np.array(
        [
            [
                [
                    image[row * 7 + y, column * 7 + x, channel]
                    for y in range(7)
                    for x in range(7)
                    for channel in range(3)
                ]
                for row in range(3)
                for column in range(5)
            ]
            for image in images_BHWC
        ]
    )
    np.testing.assert_array_equal(patchify(images_BHWC, 7), expected)
    np.testing.assert_array_equal(unpatchify(expected, (3, 5)), images_BHWC)
