"""PSNR and SSIM against scikit-image."""

import numpy as np
import skimage.metrics

from beit_jax.images.quality import psnr, ssim


def test_as_scikit_image():
    random = np.random.default_rng(0)
    images = random.random((3, 61, 47, 3)).astype(np.float32)
    noise = random.normal(0, [[[[0.1]]], [[[0.02]]], [[[0.5]]]], images.shape)
    others = np.clip(images * [[[[1.0]]], [[[0.7]]], [[[1.0]]]] + noise, 0, 1).astype(np.float32)
    expected = [
        skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(images, others)
    ]
    np.testing.assert_allclose(psnr(images, others), expected, rtol=1e-5)
    # as Wang et al. have it
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
    expected = [
        skimage.metrics.structural_similarity(a, b, channel_axis=-1, data_range=1, **options)
        for a, b in zip(images, others)
    ]
    np.testing.assert_allclose(ssim(images, others), expected, atol=1e-5)
    np.testing.assert_allclose(ssim(images, images), 1, atol=1e-5)
    np.testing.assert_array_equal(psnr(images, images), 100)
