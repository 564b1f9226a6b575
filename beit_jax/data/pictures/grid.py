"""Pictures made of pictures, for people: a grid with titles, rows without gaps, and a picture under
a map of where a model looks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# pixels: the side of a picture in a grid, between pictures, above them
CELL, GAP, TITLE = 144, 6, 22
# inferno, at five places
_COLOURS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)


def grid_picture(columns: Sequence[np.ndarray], titles: Sequence[str]) -> Image.Image:
    """One row an image, one column an array of pictures (float [B, S, S, 3] in [0, 1])."""
    width = GAP + len(columns) * (CELL + GAP)
    height = TITLE + len(columns[0]) * (CELL + GAP)
    canvas = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(canvas)
    for column, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        left = GAP + column * (CELL + GAP)
        draw.text((left, 4), title, fill='black')
        for row, picture in enumerate(_to_bytes(pictures)):
            small = len(picture) < CELL
            method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
            canvas.paste(_resized(picture, CELL, method), (left, TITLE + row * (CELL + GAP)))
    return canvas


def rows_picture(rows: Sequence[np.ndarray], side: int) -> Image.Image:
    """One row an array of pictures (float [B, S, S, 3] in [0, 1]), each `side` pixels wide."""
    canvas = Image.new('RGB', (side * len(rows[0]), side * len(rows)))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(_to_bytes(pictures)):
            canvas.paste(_resized(picture, side), (side * column, side * row))
    return canvas


def under_map(image: np.ndarray, map_hw: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """A picture (uint8 [S, S, 3], or float in [0, 1]) in grey under a map, dark to bright, with a
    ring at the point (shares of width and height); uint8 [CELL, CELL, 3]."""
    strength = (map_hw - map_hw.min()) / max(float(np.ptp(map_hw)), 1e-12)
    strength = np.asarray(_resized(strength.astype(np.float32), CELL)).clip(0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack([np.interp(strength, places, channel) for channel in _COLOURS.T], axis=-1)
    pixels = image if image.dtype == np.uint8 else _to_bytes(image)
    grey = np.asarray(_resized(pixels, CELL).convert('L'))[..., None]
    canvas = Image.fromarray(np.rint(0.4 * grey + 0.6 * heat).astype(np.uint8))
    x, y = (share * CELL for share in point)
    ImageDraw.Draw(canvas).ellipse((x - 5, y - 5, x + 5, y + 5), outline='white', width=2)
    return np.asarray(canvas)


def _to_bytes(pictures) -> np.ndarray:
    return np.rint(np.asarray(pictures) * 255).astype(np.uint8)


def _resized(picture: np.ndarray, side: int, method=Image.Resampling.BICUBIC) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), method)
