"""Pictures as torch lays them out and as we do, and how far results are apart."""

import numpy as np
import torch


def torch_order(x_BhwC):
    return torch.from_numpy(np.array(x_BhwC)).permute(0, 3, 1, 2)


def our_order(x_BChw):
    return x_BChw.detach().permute(0, 2, 3, 1).numpy()


def largest(found, expected):
    """The largest difference; the expected values must differ among each other."""
    shapes = found.shape, expected.shape
    assert found.shape == expected.shape and expected.std() > 0.1, (*shapes, expected.std())
    return np.abs(np.asarray(found) - expected).max()
