"""Made pictures of 12 channels of 16 bits: a ground and a disc, each of one of a few spectra."""

import numpy as np

CHANNELS, KINDS = 12, 24


def picture(seed: int, side: int = 28) -> np.ndarray:
    """uint16 [side, side, 12]; a smooth shade and some noise lie over it."""
    random = np.random.default_rng((1, seed))
    spectra = np.random.default_rng(0).uniform(0.2, 0.8, (KINDS, CHANNELS))
    ground, disc = spectra[random.choice(KINDS, 2, replace=False)]
    y, x = np.mgrid[:side, :side] / side - random.uniform(0.3, 0.7, 2)[:, None, None]
    inside = np.hypot(x, y)[..., None] < random.uniform(0.2, 0.35)
    shade = 1 + 0.2 * np.sin(4 * (x * random.normal() + y * random.normal()))[..., None]
    noise = random.normal(0, 0.02, (side, side, CHANNELS))
    values = np.where(inside, disc, ground) * shade + noise
    return np.rint(values.clip(0, 1) * 65535).astype(np.uint16)


def write(folder, count: int, start: int = 0):
    """A .npy file of each; returns the folder."""
    folder.mkdir(parents=True)
    for number in range(start, start + count):
        np.save(folder / f'{number:05}.npy', picture(number))
    return folder
