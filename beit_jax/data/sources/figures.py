"""The figures of `shapes`: ten kinds and a bar, and how much of each pixel one covers.

Coordinates run from -1 to 1 over the picture, x to the right and y down; angles are in radians.
"""

import functools
import math

import numpy as np


def _star(points: int, inner: float) -> np.ndarray:
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


# fmt: off
SHAPES = ('circle', 'ring', 'crescent', 'square', 'triangle', 'star', 'cross', 'arrow', 'corner',
          'hourglass')
POLYGONS = {  # corners of figures of half-size 1
    'square': [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    'triangle': [(0, -0.95), (0.9, 0.7), (-0.9, 0.7)],
    'star': _star(5, 0.42),
    'cross': [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
              (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    'arrow': [(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.1),
              (-0.8, -0.1)],
    'corner': [(-0.8, -0.9), (-0.2, -0.9), (-0.2, 0.3), (0.8, 0.3), (0.8, 0.9), (-0.8, 0.9)],
    'hourglass': [(-0.8, -0.9), (0.8, -0.9), (0.12, 0), (0.8, 0.9), (-0.8, 0.9), (-0.12, 0)],
    'bar': [(-1.2, -0.14), (1.2, -0.14), (1.2, 0.14), (-1.2, 0.14)],  # it only occludes
}
# fmt: on
_REACH = {'circle': 0.85, 'ring': 0.9, 'crescent': 0.9}  # how far a figure goes from the origin
for _name, _corners in POLYGONS.items():
    _REACH[_name] = max(math.hypot(*corner) for corner in _corners)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the edge of the figure of half-size 1 around the origin: negative inside.

    x, y and the result: float32, one shape.
    """
    radius = np.hypot(x, y)
    if shape == 'circle':
        return radius - 0.85
    if shape == 'ring':
        return np.abs(radius - 0.65) - 0.25
    if shape == 'crescent':
        return np.maximum(radius - 0.9, 0.7 - np.hypot(x - 0.4, y))
    start = np.asarray(POLYGONS[shape], np.float32)
    nearest, inside = np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(start, np.roll(start, -1, 0)):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey:  # even-odd rule: an edge that a ray to the right crosses
            inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / ey)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


_HALF = 1.5  # a table covers the square from -1.5 to 1.5
# cells along a table for each pixel along the picture: 10 in a pixel at half-size 0.8
_CELLS = 12
_MAX_CELLS = 3072  # along a table: 9 MB a figure


@functools.lru_cache(maxsize=3 * len(_REACH))
def _table(shape: str, cells: int) -> np.ndarray:
    """int8 [cells * cells]: `signed_distance` at the centres of the cells, in thirds of a cell, at
    most 127."""
    side = 2 * _HALF / cells
    centres = (np.arange(cells, dtype=np.float32) + 0.5) * side - _HALF

    def thirds(rows):
        distance = signed_distance(shape, *np.meshgrid(centres, rows))
        return np.clip(np.rint(distance * (3 / side)), -127, 127).astype(np.int8)

    parts = np.array_split(centres, -(-cells // 32))  # rows that fit the cache together
    return np.concatenate([thirds(rows) for rows in parts], axis=None)


@functools.lru_cache(maxsize=8)
def pixel_centres(size: int) -> np.ndarray:
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
    columns, rows = (_pixels(at - reach, at + reach, size) for at in centre)
    x, y = pixel_centres(size)[columns] - centre[0], pixel_centres(size)[rows] - centre[1]
    cells = min(_CELLS * size, _MAX_CELLS)
    scale = cells / (2 * _HALF * half_size)  # cells along a unit of the picture
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    column = np.add.outer(sin * y + cells / 2, cos * x)
    row = np.add.outer(cos * y + cells / 2, -sin * x)
    cell = row.clip(0, cells - 1, out=row).astype(np.intp)
    cell *= cells
    cell += column.clip(0, cells - 1, out=column).astype(np.intp)
    # thirds of a cell -> pixels
    share = np.multiply(_table(shape, cells).take(cell), -size / (6 * scale), dtype=np.float32)
    share += 0.5
    return (rows, columns), share.clip(0, 1, out=share)


def _pixels(low: float, high: float, size: int) -> slice:
    """The pixels from coordinate `low` to `high`."""
    return slice(*(max(0, round((end + 1) * size / 2)) for end in (low, high)))
