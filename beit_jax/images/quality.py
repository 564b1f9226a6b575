"""How far a reconstruction is from its picture. Pictures are float in [0, 1], [B, H, W, C]."""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, DEVIATION = 11, 1.5  # pixels, of the Gaussian window of SSIM
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images_BHWC, others_BHWC):
    """Peak signal-to-noise ratio of each image in dB, float32 [B].

    At most 100, where they are all but equal.
    """
    error_B = jnp.mean(jnp.square(images_BHWC - others_BHWC), axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error_B, 1e-10))


def ssim(images_BHWC, others_BHWC):
    """Structural similarity of each image, float32 [B], at most 1.

    Wang et al. 2004: Gaussian window of 11 x 11, inside the picture; sides of at least 11 pixels.
    """
    taps = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / DEVIATION))
    taps = jnp.asarray(taps / taps.sum(), jnp.float32)

    def blur(x_BHWC):
        for axis in (1, 2):
            shape = [1, 1, 1, 1]
            shape[axis] = WINDOW
            window = taps.reshape(shape)
            x_BHWC = jax.scipy.signal.convolve(x_BHWC, window, mode='valid', method='direct')
        return x_BHWC

    mean, other_mean = blur(images_BHWC), blur(others_BHWC)
    variance = blur(jnp.square(images_BHWC)) - mean**2
    other_variance = blur(jnp.square(others_BHWC)) - other_mean**2
    covariance = blur(images_BHWC * others_BHWC) - mean * other_mean
    common = (2 * mean * other_mean + _C1) * (2 * covariance + _C2)
    whole = (mean**2 + other_mean**2 + _C1) * (variance + other_variance + _C2)
    return jnp.mean(common / whole, axis=(1, 2, 3))
