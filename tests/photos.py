"""Photographs that ship with scikit-learn, scikit-image and matplotlib, for tests: real pictures without a download."""
from pathlib import Path

import matplotlib
from PIL import Image
import skimage
import sklearn.datasets

_SKIMAGE = Path(skimage.__file__).parent / 'data'
ORIGINALS = [
    *sorted((Path(sklearn.datasets.__file__).parent / 'images').glob('*.jpg')),
    _SKIMAGE / 'rocket.jpg', _SKIMAGE / 'retina.jpg', _SKIMAGE / 'chelsea.png', _SKIMAGE / 'coffee.png', _SKIMAGE / 'astronaut.png',
    Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg',
]
_SIZES = [(500, 375), (331, 499), (431, 293), (257, 263), (401, 239), (349, 233), (211, 317), (283, 383)]  # width, height


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
        image.save(path, icc_profile=None, **({} if mode == 'RGBA' else {'quality': 92, 'progressive': i == 2}))
        paths.append(path)
    return paths
