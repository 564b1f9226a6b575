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


def visible(pictures: np.ndarray, bands: Sequence[int] = ()) -> np.ndarray:
    """Pictures [..., C], uint8, uint16 or float in [0, 1], as a person sees them, uint8 [..., 3]:
    three channels or one, by their numbers from 0; (): the first three, or the first."""
    bands = bands or range(3 if pictures.shape[-1] >= 3 else 1)
    chosen = pictures[..., list(bands)]
    if chosen.dtype != np.uint8:
        top = np.iinfo(chosen.dtype).max if chosen.dtype.kind == 'u' else 1
        chosen = np.rint(chosen * (255 / top)).astype(np.uint8)
    return np.broadcast_to(chosen, (*chosen.shape[:-1], 3))


def grid_picture(columns: Sequence[np.ndarray], titles: Sequence[str]) -> Image.Image:
    """One row an image, one column an array of pictures (uint8, or float in [0, 1], [B, H, W, 3],
    all of one shape)."""
    shape = _cell(columns[0])
    width = GAP + len(columns) * (shape[1] + GAP)
    height = TITLE + len(columns[0]) * (shape[0] + GAP)
    canvas = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(canvas)
    for column, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        left = GAP + column * (shape[1] + GAP)
        draw.text((left, 4), title, fill='black')
        for row, picture in enumerate(_to_bytes(pictures)):
            small = len(picture) < shape[0]
            method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
            canvas.paste(_resized(picture, shape, method), (left, TITLE + row * (shape[0] + GAP)))
    return canvas


def rows_picture(rows: Sequence[np.ndarray], side: int) -> Image.Image:
    """One row an array of pictures (uint8, or float in [0, 1], [B, H, W, 3]), the longer side of
    each `side` pixels."""
    height, width = _cell(rows[0], side)
    canvas = Image.new('RGB', (width * len(rows[0]), height * len(rows)))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(_to_bytes(pictures)):
            canvas.paste(_resized(picture, (height, width)), (width * column, height * row))
    return canvas


def under_map(image: np.ndarray, map_hw: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """A picture (uint8 [H, W, 3], or float in [0, 1]) in grey under a map, dark to bright, with a
    ring at the point (shares of width and height); uint8, its longer side CELL."""
    shape = _cell(image[None])
    strength = (map_hw - map_hw.min()) / max(float(np.ptp(map_hw)), 1e-12)
    strength = np.asarray(_resized(strength.astype(np.float32), shape)).clip(0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack([np.interp(strength, places, channel) for channel in _COLOURS.T], axis=-1)
    grey = np.asarray(_resized(_to_bytes(image), shape).convert('L'))[..., None]
    canvas = Image.fromarray(np.rint(0.4 * grey + 0.6 * heat).astype(np.uint8))
    x, y = (share * side for share, side in zip(point, shape[::-1]))
    ImageDraw.Draw(canvas).ellipse((x - 5, y - 5, x + 5, y + 5), outline='white', width=2)
    return np.asarray(canvas)


def _to_bytes(pictures) -> np.ndarray:
    pictures = np.asarray(pictures)
    return pictures if pictures.dtype == np.uint8 else np.rint(pictures * 255).astype(np.uint8)


def _cell(pictures: np.ndarray, side: int = CELL) -> tuple[int, int]:
    """Height and width of pictures [B, H, W, ...] whose longer side becomes `side`."""
    height, width = pictures.shape[1:3]
    longer = max(height, width)
    return max(1, round(side * height / longer)), max(1, round(side * width / longer))


def _resized(picture: np.ndarray, shape, method=Image.Resampling.BICUBIC) -> Image.Image:
    return Image.fromarray(picture).resize(shape[::-1], method)
