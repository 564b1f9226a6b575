"""`shapes`: labelled pictures drawn from the example's index alone: no files, no download, the same
on every machine.

One figure of ten kinds on a ground; the label is its shape. The levels begin with a ladder on which
each rung adds one thing to the one before, so that a study can say what it is that makes a method
pay: `easy` (a bright figure on a plain dark ground, turned a little), `rotated` (by any angle),
`textured` (stripes on all there is), `cluttered` (small grey figures behind) and `occluded` (a grey
bar across the figure). Beside it stand `medium` (any rotation, free colours, uneven light) and
`hard` (any brightness, stripes, clutter and a patch in front on top of that).

Coordinates, sizes and angles are those of `figures`.
"""

import dataclasses
import functools
import hashlib
import math
import statistics
import zlib

import numpy as np

from beit_jax.data.sources.figures import SHAPES, coverage, pixel_centres
from beit_jax.data.sources.source import Example


@dataclasses.dataclass(frozen=True)
class Level:
    """The ranges from which a picture is drawn. Colours and light are in [0, 1]; sizes are halves
    of the figure's extent."""

    rotation: float  # the figure turns by up to this angle
    size: tuple[float, float]
    ground: tuple[float, float]  # brightness
    figure: tuple[float, float]
    tint: float  # how far a colour channel strays from the brightness
    noise: float  # standard deviation, drawn up to this
    light: float = 0.0  # strength of a gradient across the picture
    texture: float = 0.0  # contrast of stripes on all that is drawn
    clutter: int = 0  # small figures behind
    # what stands in front: 'bar', across the figure, or 'patch', a small square anywhere
    occlusion: str = ''
    others: tuple[float, float] = (0.0, 1.0)  # brightness of clutter and occlusion


_EASY = Level(
    rotation=0.5, size=(0.5, 0.8), ground=(0.08, 0.16), figure=(0.75, 0.95), tint=0.02, noise=0.02
)
_ROTATED = dataclasses.replace(_EASY, rotation=2 * np.pi)
_TEXTURED = dataclasses.replace(_ROTATED, texture=0.15)
_CLUTTERED = dataclasses.replace(_TEXTURED, clutter=4, others=(0.3, 0.6))
LEVELS = {
    'easy': _EASY,
    'rotated': _ROTATED,
    'textured': _TEXTURED,
    'cluttered': _CLUTTERED,
    'occluded': dataclasses.replace(_CLUTTERED, occlusion='bar'),
    'medium': Level(
        rotation=2 * np.pi,
        size=(0.4, 0.75),
        ground=(0.0, 0.35),
        figure=(0.55, 1.0),
        tint=0.2,
        noise=0.04,
        light=0.2,
    ),
    'hard': Level(
        rotation=2 * np.pi,
        size=(0.35, 0.7),
        ground=(0.0, 1.0),
        figure=(0.0, 1.0),
        tint=0.3,
        noise=0.06,
        light=0.4,
        texture=0.15,
        clutter=4,
        occlusion='patch',
    ),
}


@functools.lru_cache(maxsize=1)
def _quantiles() -> np.ndarray:
    """float32 [65536], increasing: any of them, each as likely, is a standard normal number, in a
    fifth of NumPy's time."""
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


def _between(rng, low, high):
    """In a third of the time of rng.uniform."""
    return low + (high - low) * rng.random()


def _colour(rng, level, brightness, size, box):
    """A flat or striped colour, float32 [3, 1, 1] or [3, h, w], in the box [h, w] of a picture."""
    mean = _between(rng, *brightness)
    channels = [mean + _between(rng, -level.tint, level.tint) for _ in range(3)]
    colour = np.array(channels, np.float32)[:, None, None]
    if not level.texture:
        return colour
    y, x = (_between(rng, -12, 12) * pixel_centres(size)[part] for part in box)
    stripes = np.sin(np.add.outer(y, x + _between(rng, 0, 2 * math.pi)))
    stripes *= level.texture
    return colour + stripes


def draw(level: Level, size: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
    """One picture: (image uint8 [size, size, 3], mask bool [size, size] of the figure that is seen,
    label in [0, 10))."""
    rng = _generator(seed)
    label = int(rng.integers(len(SHAPES)))  # the first draw: see `draw_label`
    # in planes: a field [h, w] acts on them fast
    image, mask = np.empty((3, size, size), np.float32), np.zeros((size, size), bool)
    image[:] = _colour(rng, level, level.ground, size, (slice(None), slice(None)))

    def paint(shape, half_size, centre, rotation, brightness):
        box, share = coverage(shape, size, half_size, centre, _between(rng, 0, rotation))
        part = image[:, *box]
        part += share * (_colour(rng, level, brightness, size, box) - part)
        return box, share > 0.5

    for _ in range(level.clutter):
        shape, half_size = SHAPES[int(_between(rng, 0, len(SHAPES)))], _between(rng, 0.1, 0.25)
        centre = _between(rng, -1, 1), _between(rng, -1, 1)
        paint(shape, half_size, centre, 2 * math.pi, level.others)
    half_size = _between(rng, *level.size)
    x, y = (_between(rng, half_size - 0.9, 0.9 - half_size) for _ in range(2))
    box, seen = paint(SHAPES[label], half_size, (x, y), level.rotation, level.figure)
    mask[box] = seen
    if level.occlusion:
        dx, dy = _between(rng, -0.5, 0.5), _between(rng, -0.5, 0.5)
        if level.occlusion == 'bar':
            front = 'bar', half_size, (x + half_size * dx / 2, y + half_size * dy / 2)
        else:
            front = 'square', _between(rng, 0.1, 0.2), (dx, dy)
        box, hidden = paint(*front, 2 * math.pi, level.others)
        mask[box] &= ~hidden
    if level.light:
        strength, angle = _between(rng, 0, level.light), _between(rng, 0, 2 * math.pi)
        down = strength * math.sin(angle) * pixel_centres(size) + 1
        across = strength * math.cos(angle) * pixel_centres(size)
        image *= np.add.outer(down, across)
    noise = _quantiles().take(rng.integers(len(_quantiles()), size=image.shape, dtype=np.uint16))
    noise *= _between(rng, 0, level.noise)
    image += noise
    image *= 255
    np.rint(image, out=image).clip(0, 255, out=image)
    return np.stack(image, -1, dtype=np.uint8, casting='unsafe'), mask, label


def draw_label(seed: tuple[int, int]) -> int:
    """The label of `draw`, without the picture."""
    return int(_generator(seed).integers(len(SHAPES)))


def _generator(seed):
    return np.random.Generator(np.random.Philox(key=np.asarray(seed, np.uint64)))


class ShapesSource:
    """The built-in pictures as a source; `split`, 'train' or 'evaluate', says which they are.

    With `label_maps` a label is the class of each pixel: the shape of the figure, where that is
    seen, or `background`, the eleventh class.
    """

    def __init__(
        self, num_examples: int, image_size: int, level: str, split: str, label_maps: bool = False
    ):
        self.num_examples, self.image_size = num_examples, image_size
        self.level, self.split, self.label_maps = LEVELS[level], split, label_maps
        self.class_names = (*SHAPES, 'background') if label_maps else SHAPES
        drawn = f'shapes 2 {num_examples} {image_size} {self.level} {split}'
        self.fingerprint = hashlib.sha256(drawn.encode()).hexdigest()

    def __len__(self) -> int:
        return self.num_examples

    def name(self, index: int) -> str:
        return f'shapes/{self.split}/{index}'

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(image uint8 [S, S, 3], mask bool [S, S], label) of an example."""
        return draw(self.level, self.image_size, self._seed(index))

    def _seed(self, index):
        return zlib.crc32(self.split.encode()), index

    def read(self, index: int) -> Example:
        image, mask, label = self.draw(index)
        if self.label_maps:
            return Example(image, np.where(mask, np.uint8(label), np.uint8(len(SHAPES))))
        return Example(image, label)

    def label(self, index: int) -> int:
        return draw_label(self._seed(index))
