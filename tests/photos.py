"""Photographs that ship with scikit-learn, scikit-image and matplotlib, for tests: real pictures
without a download.

    python -m tests.photos DIR [COUNT]    # 500 JPEG files like ImageNet's, for benchmarks
"""

from pathlib import Path
import sys

import matplotlib
import numpy as np
from PIL import Image
import skimage
import sklearn.datasets

_SKIMAGE = Path(skimage.__file__).parent / 'data'
ORIGINALS = [
    *sorted((Path(sklearn.datasets.__file__).parent / 'images').glob('*.jpg')),
    _SKIMAGE / 'rocket.jpg',
    _SKIMAGE / 'retina.jpg',
    _SKIMAGE / 'chelsea.png',
    _SKIMAGE / 'coffee.png',
    _SKIMAGE / 'astronaut.png',
    Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg',
]
# width, height
_SIZES = [
    (500, 375),
    (331, 499),
    (431, 293),
    (257, 263),
    (401, 239),
    (349, 233),
    (211, 317),
    (283, 383),
]


def write_photos(directory: Path) -> list[Path]:
    """Writes eight photographs of different sizes and kinds and returns their paths, sorted.

    Five RGB JPEGs (one of them progressive), one greyscale, one CMYK, and one PNG with alpha.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (original, size) in enumerate(zip(ORIGINALS, _SIZES, strict=True)):
        mode = {1: 'L', 3: 'CMYK', 6: 'RGBA'}.get(i, 'RGB')
        image = Image.open(original).convert('RGB').resize(size, Image.LANCZOS).convert(mode)
        if mode == 'RGBA':
            image.putalpha(Image.linear_gradient('L').resize(size))
        path = directory / f'{i}_{original.stem}.{"png" if mode == "RGBA" else "jpg"}'
        image.save(
            path,
            icc_profile=None,
            **({} if mode == 'RGBA' else {'quality': 92, 'progressive': i == 2}),
        )
        paths.append(path)
    return paths


def write_many_photos(directory: Path, count: int = 500) -> None:
    """Writes JPEG files of ImageNet's typical size, 500 x 375 pixels and 105 KB, in ten folders:
    random crops of the photographs, with the noise of a sensor."""
    images = [Image.open(original).convert('RGB') for original in ORIGINALS]
    rng = np.random.default_rng(0)
    for i in range(count):
        image = images[i % len(images)]
        scale = min(image.width / 500, image.height / 375) * rng.uniform(0.6, 1.0)
        width, height = int(500 * scale), int(375 * scale)
        left = rng.integers(0, image.width - width + 1)
        top = rng.integers(0, image.height - height + 1)
        pixels = np.asarray(
            image.resize((500, 375), Image.BICUBIC, box=(left, top, left + width, top + height)),
            np.float32,
        )
        pixels = (
            (pixels + rng.normal(0, rng.uniform(3, 9), pixels.shape)).clip(0, 255).astype(np.uint8)
        )
        folder = directory / f'{i % 10}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f'{i:04}.jpg', quality=96)


if __name__ == '__main__':
    write_many_photos(Path(sys.argv[1]), *map(int, sys.argv[2:]))
