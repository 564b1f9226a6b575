"""Images with label maps, for tests: rectangles of classes, and pictures whose colours say them."""

import io

import numpy as np
from PIL import Image

from beit_jax.data.config import View
from beit_jax.data.sources.source import Example

SIZE = 67  # of the views, in pixels
VIEWS = (View('image', SIZE), View('label_map', SIZE, 'nearest'))
SIZES = [(83, 131), (127, 61), (97, 101), (61, 307), (41, 43), (149, 113), (53, 79)]


def pair(seed, height, width, classes=5):
    """(image uint8 [H, W, 3], label map uint8 [H, W])."""
    rng = np.random.default_rng(seed)
    rows, columns = (
        np.repeat(np.arange(side), rng.integers(5, 17, side))[:side] for side in (height, width)
    )
    label_map = rng.integers(0, classes, [height, width])[rows][:, columns].astype(np.uint8)
    channels = [label_map * 50, 255 - label_map * 50, label_map % 2 * 255]
    return np.stack(channels, -1).astype(np.uint8), label_map


def write_pairs(root, count=7, part='', suffix='.png', offset=0):
    """A folder of images and one of annotations; returns the path of the two."""
    images, annotations = root / 'images' / part, root / 'annotations' / part
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, label_map = pair(i, *SIZES[i % len(SIZES)])
        Image.fromarray(image).save(images / f'{i}.jpg', quality=98, subsampling=0)
        Image.fromarray(label_map + np.uint8(offset)).save(annotations / f'{i}{suffix}')
    return str(root)


class Pairs:
    """`pair`s that come decoded."""

    class_names = tuple('abcde')

    def __init__(self, sizes=SIZES, classes=5):
        self.sizes, self.classes = sizes, classes

    def __len__(self):
        return len(self.sizes)

    def name(self, index):
        return f'pair {index}'

    def read(self, index):
        return Example(*pair(index, *self.sizes[index], self.classes))


def encoded(array, kind='PNG', mode=None, **options):
    """A file of the picture."""
    file, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()
