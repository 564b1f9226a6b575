"""`shapes`: labelled pictures drawn from the example's index alone: no files, no download, the same
on every machine.

One figure of ten kinds on a ground; the label is its shape. The levels begin with a ladder on which
each rung adds one thing to the one before, so that a study can say what it is that makes a method
pay: `easy` (a bright figure on a plain dark ground, turned a little), `rotated` (by any angle),
`textured` (stripes on all there is), `cluttered` (small grey figures behind) and `occluded` (a grey
bar across the figure). Beside it stand `medium` (any rotation, free colours, uneven light) and
`hard` (any brightness, stripes, clutter and a patch in front on top of that).

Coordinates run from -1 to 1 over the picture, x to the right and y down; angles are in radians.
"""

import dataclasses
import functools
import hashlib
import math
import statistics
import zlib

import numpy as np

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


def _star(points: int, inner: float) -> np.ndarray:
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


_POLYGONS = {
    'square': [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    'triangle': [(0, -0.95), (0.9, 0.7), (-0.9, 0.7)],
    'star': _star(5, 0.42),
    'cross': [
        (-0.3, -0.95),
        (0.3, -0.95),
        (0.3, -0.3),
        (0.95, -0.3),
        (0.95, 0.3),
        (0.3, 0.3),
        (0.3, 0.95),
        (-0.3, 0.95),
        (-0.3, 0.3),
        (-0.95, 0.3),
        (-0.95, -0.3),
        (-0.3, -0.3),
    ],
    'arrow': [
        (0, -1),
        (0.8, -0.1),
        (0.3, -0.1),
        (0.3, 0.95),
        (-0.3, 0.95),
        (-0.3, -0.1),
        (-0.8, -0.1),
    ],
    'corner': [(-0.8, -0.9), (-0.2, -0.9), (-0.2, 0.3), (0.8, 0.3), (0.8, 0.9), (-0.8, 0.9)],
    'hourglass': [(-0.8, -0.9), (0.8, -0.9), (0.12, 0), (0.8, 0.9), (-0.8, 0.9), (-0.12, 0)],
    'bar': [(-1.2, -0.14), (1.2, -0.14), (1.2, 0.14), (-1.2, 0.14)],  # it only occludes
}
SHAPES = (
    'circle',
    'ring',
    'crescent',
    'square',
    'triangle',
    'star',
    'cross',
    'arrow',
    'corner',
    'hourglass',
)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the edge of the figure of half-size 1 around the origin: negative inside. x, y
    and the result: float32, one shape."""
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


_REACH = {
    'circle': 0.85,
    'ring': 0.9,
    'crescent': 0.9,  # how far a figure goes from the origin
    **{name: max(math.hypot(*corner) for corner in corners) for name, corners in _POLYGONS.items()},
}
_HALF = 1.5  # a table covers the square from -1.5 to 1.5
# along a table, for each pixel along the picture: 10 in a pixel at half-size 0.8; at most, 9 MB a
# figure
_CELLS, _MAX_CELLS = 12, 3072


@functools.lru_cache(maxsize=3 * len(_REACH))
def _table(shape: str, cells: int) -> np.ndarray:
    """`signed_distance` at the centres of the cells, in thirds of a cell, cut off at 127: int8
    [cells * cells]."""
    side = 2 * _HALF / cells
    centres = (np.arange(cells, dtype=np.float32) + 0.5) * side - _HALF
    parts = np.array_split(centres, -(-cells // 32))  # rows that fit the cache together
    return np.concatenate(
        [
            np.clip(
                np.rint(signed_distance(shape, *np.meshgrid(centres, rows)) * (3 / side)), -127, 127
            ).astype(np.int8)
            for rows in parts
        ],
        axis=None,
    )


@functools.lru_cache(maxsize=1)
def _quantiles() -> np.ndarray:
    """float32 [65536], increasing: any of them, each as likely, is a standard normal number, in a
    fifth of NumPy's time."""
    return np.array(
        [statistics.NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32
    )


@functools.lru_cache(maxsize=8)
def _centres(size: int) -> np.ndarray:
    """The coordinates of the pixels along the picture, float32 [size]."""
    return (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1


def coverage(
    shape: str, size: int, half_size: float, centre: tuple[float, float], angle: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The share of each pixel that a figure covers: (the box, rows and columns, where it may be
    above 0; float32 [h, w] there, in [0, 1]).

    It is 0.5 - the distance to the edge in pixels, cut off at 0 and 1; within 0.1 of that in
    pictures of 32 to 256 pixels, at a `half_size` of 0.1 to 0.8 of the picture's half.
    """
    reach = _REACH[shape] * half_size + 1 / size  # half a pixel beyond the edge
    columns, rows = (
        slice(*(max(0, round((end + 1) * size / 2)) for end in (at - reach, at + reach)))
        for at in centre
    )
    x, y = _centres(size)[columns] - centre[0], _centres(size)[rows] - centre[1]
    cells = min(_CELLS * size, _MAX_CELLS)
    scale = cells / (2 * _HALF * half_size)  # cells along a unit of the picture
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    column, row = (
        np.add.outer(sin * y + cells / 2, cos * x),
        np.add.outer(cos * y + cells / 2, -sin * x),
    )
    cell = row.clip(0, cells - 1, out=row).astype(np.intp)
    cell *= cells
    cell += column.clip(0, cells - 1, out=column).astype(np.intp)
    # thirds of a cell -> pixels
    share = np.multiply(_table(shape, cells).take(cell), -size / (6 * scale), dtype=np.float32)
    share += 0.5
    return (rows, columns), share.clip(0, 1, out=share)


def _between(rng, low, high):
    """In a third of the time of rng.uniform."""
    return low + (high - low) * rng.random()


def _colour(rng, level, brightness, size, box):
    """A flat or striped colour, float32 [3, 1, 1] or [3, h, w], in the box [h, w] of a picture."""
    mean = _between(rng, *brightness)
    colour = np.array(
        [[[mean + _between(rng, -level.tint, level.tint)]] for _ in range(3)], np.float32
    )
    if not level.texture:
        return colour
    y, x = (_between(rng, -12, 12) * _centres(size)[part] for part in box)
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
        paint(
            shape,
            half_size,
            (_between(rng, -1, 1), _between(rng, -1, 1)),
            2 * math.pi,
            level.others,
        )
    half_size = _between(rng, *level.size)
    x, y = (_between(rng, half_size - 0.9, 0.9 - half_size) for _ in range(2))
    box, seen = paint(SHAPES[label], half_size, (x, y), level.rotation, level.figure)
    mask[box] = seen
    if level.occlusion:
        dx, dy = _between(rng, -0.5, 0.5), _between(rng, -0.5, 0.5)
        if level.occlusion == 'bar':
            box, hidden = paint(
                'bar',
                half_size,
                (x + half_size * dx / 2, y + half_size * dy / 2),
                2 * math.pi,
                level.others,
            )
        else:
            box, hidden = paint(
                'square', _between(rng, 0.1, 0.2), (dx, dy), 2 * math.pi, level.others
            )
        mask[box] &= ~hidden
    if level.light:
        strength, angle = _between(rng, 0, level.light), _between(rng, 0, 2 * math.pi)
        image *= np.add.outer(
            strength * math.sin(angle) * _centres(size) + 1,
            strength * math.cos(angle) * _centres(size),
        )
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
    """The built-in pictures as a source. `split` ('train' or 'evaluate') only changes which
    pictures they are.

    With `label_maps` a label is the class of each pixel: the shape of the figure, where that is
    seen, or `background`, the eleventh class.
    """

    def __init__(
        self, num_examples: int, image_size: int, level: str, split: str, label_maps: bool = False
    ):
        self.label_maps, self.class_names = (
            label_maps,
            (*SHAPES, 'background') if label_maps else SHAPES,
        )
        self.num_examples, self.image_size, self.level, self.split = (
            num_examples,
            image_size,
            LEVELS[level],
            split,
        )
        self.fingerprint = hashlib.sha256(
            f'shapes 2 {num_examples} {image_size} {self.level} {split}'.encode()
        ).hexdigest()

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
        return Example(
            image,
            np.where(mask, np.uint8(label), np.uint8(len(SHAPES))) if self.label_maps else label,
        )

    def label(self, index: int) -> int:
        return draw_label(self._seed(index))
