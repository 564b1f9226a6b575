"""`shapes`: labelled pictures drawn from the example's index alone: no files, no download, the same on every machine.

One figure of ten kinds on a ground; the label is its shape. Three levels: `easy` (a bright figure on a plain dark ground, small changes of
pose, tint and noise), `medium` (any rotation, free colours, uneven light) and `hard` (textures, clutter, occlusion on top of that).
Coordinates run from -1 to 1 over the picture, x to the right and y down; angles are in radians.
"""
import dataclasses
import functools
import hashlib
import zlib

import numpy as np

from beit_jax.data.sources import Example


@dataclasses.dataclass(frozen=True)
class Level:
    """The ranges from which a picture is drawn. Colours and light are in [0, 1]; sizes are halves of the figure's extent."""
    rotation: float  # the figure turns by up to this angle
    size: tuple[float, float]
    ground: tuple[float, float]  # brightness
    figure: tuple[float, float]
    tint: float  # how far a colour channel strays from the brightness
    noise: float  # standard deviation, drawn up to this
    light: float = 0.0  # strength of a gradient across the picture
    texture: float = 0.0  # contrast of stripes on ground and figure
    clutter: int = 0  # small figures behind
    occlusion: bool = False  # a bar across the figure


LEVELS = {
    'easy': Level(rotation=0.5, size=(0.5, 0.8), ground=(0.08, 0.16), figure=(0.75, 0.95), tint=0.02, noise=0.02),
    'medium': Level(rotation=2 * np.pi, size=(0.4, 0.75), ground=(0.0, 0.35), figure=(0.55, 1.0), tint=0.2, noise=0.04, light=0.2),
    'hard': Level(rotation=2 * np.pi, size=(0.35, 0.7), ground=(0.0, 1.0), figure=(0.0, 1.0), tint=0.3, noise=0.06, light=0.4,
                  texture=0.15, clutter=4, occlusion=True),
}


def _star(points: int, inner: float) -> np.ndarray:
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


_POLYGONS = {
    'square': [(-.75, -.75), (.75, -.75), (.75, .75), (-.75, .75)],
    'triangle': [(0, -.95), (.9, .7), (-.9, .7)],
    'star': _star(5, 0.42),
    'cross': [(-.3, -.95), (.3, -.95), (.3, -.3), (.95, -.3), (.95, .3), (.3, .3), (.3, .95), (-.3, .95), (-.3, .3), (-.95, .3),
              (-.95, -.3), (-.3, -.3)],
    'arrow': [(0, -1), (.8, -.1), (.3, -.1), (.3, .95), (-.3, .95), (-.3, -.1), (-.8, -.1)],
    'corner': [(-.8, -.9), (-.2, -.9), (-.2, .3), (.8, .3), (.8, .9), (-.8, .9)],
    'hourglass': [(-.8, -.9), (.8, -.9), (.12, 0), (.8, .9), (-.8, .9), (-.12, 0)],
}
SHAPES = ('circle', 'ring', 'crescent', *_POLYGONS)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the edge of the figure of half-size 1 around the origin: negative inside. x, y and the result: float32, one shape."""
    radius = np.hypot(x, y)
    if shape == 'circle':
        return radius - 0.85
    if shape == 'ring':
        return np.abs(radius - 0.65) - 0.25
    if shape == 'crescent':
        return np.maximum(radius - 0.9, 0.7 - np.hypot(x - 0.4, y))
    start = np.asarray(_POLYGONS[shape], np.float32)
    nearest, inside = np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(start, np.roll(start, -1, 0)):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey:  # even-odd rule: an edge that a ray to the right crosses
            inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / ey)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return tuple(np.meshgrid(centres, centres, indexing='xy'))


def _coverage(rng, shape, size, half_size, rotation, spread):
    """Share of each pixel [size, size] that a figure at a random place and angle covers, in [0, 1]."""
    x, y = _grid(size)
    (cx, cy), angle = rng.uniform(-spread, spread, 2), rng.uniform(0, rotation)
    cos, sin = np.float32(np.cos(angle) / half_size), np.float32(np.sin(angle) / half_size)
    x, y = x - np.float32(cx), y - np.float32(cy)
    distance = signed_distance(shape, cos * x + sin * y, cos * y - sin * x) * half_size
    return np.clip(0.5 - distance * (size / 2), 0, 1)


def _colour(rng, level, brightness, size):
    """A flat or striped colour field [size, size, 3] or [3]."""
    colour = (rng.uniform(*brightness) + rng.uniform(-level.tint, level.tint, 3)).astype(np.float32)
    if not level.texture:
        return colour
    x, y = _grid(size)
    (fx, fy), phase = rng.uniform(-12, 12, 2), rng.uniform(0, 2 * np.pi)
    return colour + np.float32(level.texture) * np.sin(fx * x + fy * y + phase, dtype=np.float32)[..., None]


def draw(level: Level, size: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
    """One picture: (image uint8 [size, size, 3], mask bool [size, size] of the figure that is seen, label in [0, 10))."""
    rng = _generator(seed)
    label = int(rng.integers(len(SHAPES)))  # the first draw: see `draw_label`
    image = np.broadcast_to(_colour(rng, level, level.ground, size), (size, size, 3))
    for _ in range(level.clutter):
        small = _coverage(rng, SHAPES[rng.integers(len(SHAPES))], size, rng.uniform(0.1, 0.25), 2 * np.pi, 1.0)
        image = image + small[..., None] * (_colour(rng, level, level.ground, size) - image)
    half_size = rng.uniform(*level.size)
    figure = _coverage(rng, SHAPES[label], size, half_size, level.rotation, 0.9 - half_size if half_size < 0.9 else 0.0)
    image = image + figure[..., None] * (_colour(rng, level, level.figure, size) - image)
    mask = figure > 0.5
    if level.occlusion:
        bar = _coverage(rng, 'square', size, rng.uniform(0.1, 0.2), 2 * np.pi, 0.5)
        image = image + bar[..., None] * (_colour(rng, level, level.ground, size) - image)
        mask &= bar <= 0.5
    if level.light:
        x, y = _grid(size)
        angle = rng.uniform(0, 2 * np.pi)
        image = image * (1 + rng.uniform(0, level.light) * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    image = image + rng.uniform(0, level.noise) * rng.standard_normal((size, size, 3), dtype=np.float32)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), mask, label


def draw_label(seed: tuple[int, int]) -> int:
    """The label of `draw`, without the picture."""
    return int(_generator(seed).integers(len(SHAPES)))


def _generator(seed):
    return np.random.Generator(np.random.Philox(key=np.asarray(seed, np.uint64)))


class ShapesSource:
    """The built-in pictures as a source. `split` ('train' or 'evaluate') only changes which pictures they are.

    With `label_maps` a label is the class of each pixel: the shape of the figure, where that is seen, or `background`, the eleventh class.
    """

    def __init__(self, num_examples: int, image_size: int, level: str, split: str, label_maps: bool = False):
        self.label_maps, self.class_names = label_maps, (*SHAPES, 'background') if label_maps else SHAPES
        self.num_examples, self.image_size, self.level, self.split = num_examples, image_size, LEVELS[level], split
        self.fingerprint = hashlib.sha256(f'shapes 1 {num_examples} {image_size} {self.level} {split}'.encode()).hexdigest()

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
        return Example(image, np.where(mask, label, len(SHAPES)).astype(np.uint8) if self.label_maps else label)

    def label(self, index: int) -> int:
        return draw_label(self._seed(index))
