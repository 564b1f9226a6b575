"""Label maps as pictures: a PNG whose pixels are the classes, and an overview of image, truth and
prediction with a legend."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from beit_jax.data.config import IGNORED

# of an overview: pixels of a picture's longer side, between pictures, of a line; classes in the
# legend
SIDE, GAP, LINE, MOST = 360, 6, 14, 16


def palette() -> np.ndarray:
    """The colours of the classes 0 to 254, and black for what has none (255); uint8 [256, 3].

    Far apart for small numbers: the three lowest bits of class + 1 are the highest of red, green
    and blue, and so on (PASCAL VOC's law).
    """
    numbers = np.arange(1, 257) % 256
    bits = (numbers[:, None] >> np.arange(8)) & 1  # lowest first
    channels = [
        np.concatenate(
            [bits[:, channel::3], np.zeros((256, 8 - bits[:, channel::3].shape[1]), int)], axis=1
        )
        for channel in range(3)
    ]
    return np.stack([channel @ (128 >> np.arange(8)) for channel in channels], axis=1).astype(
        np.uint8
    )


def label_png(label_map: np.ndarray) -> Image.Image:
    """uint8 [H, W] -> a picture with a palette, whose pixel values are the classes."""
    image = Image.fromarray(label_map)
    image.putpalette(palette().ravel().tolist())
    return image


def overview(
    image: np.ndarray, maps: dict[str, np.ndarray], class_names: Sequence[str]
) -> Image.Image:
    """The image, each label map (uint8 [H, W], by its title), the last one laid over the image, and
    the classes that are there."""
    colours, prediction = palette(), list(maps.values())[-1]
    blend = np.where(
        (prediction == IGNORED)[..., None],
        image,
        (image.astype(np.uint16) + colours[prediction]) // 2,
    ).astype(np.uint8)
    columns = (
        {'image': image}
        | {title: colours[label_map] for title, label_map in maps.items()}
        | {'overlay': blend}
    )
    share = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * share)) for side in image.shape[:2])
    there = np.bincount(
        np.concatenate([label_map.ravel() for label_map in maps.values()]), minlength=256
    )[:IGNORED]
    classes = [number for number in np.argsort(-there, kind='stable')[:MOST] if there[number]]
    legend = 200
    canvas = Image.new(
        'RGB',
        (len(columns) * (width + GAP) + GAP + legend, 20 + max(height, len(classes) * LINE) + GAP),
        'white',
    )
    draw = ImageDraw.Draw(canvas)
    for number, (title, pixels) in enumerate(columns.items()):
        left = GAP + number * (width + GAP)
        draw.text((left, 4), title, fill='black')
        method = (
            Image.Resampling.BILINEAR
            if title in ('image', 'overlay') and share < 1
            else Image.Resampling.NEAREST
        )
        canvas.paste(Image.fromarray(pixels).resize((width, height), method), (left, 20))
    left = GAP + len(columns) * (width + GAP)
    for row, number in enumerate(classes):
        top = 20 + row * LINE
        draw.rectangle(
            (left, top + 1, left + LINE - 3, top + LINE - 3), fill=tuple(colours[number].tolist())
        )
        name = class_names[number] if number < len(class_names) else str(number)
        # what Pillow's own font has
        draw.text(
            (left + LINE + 2, top),
            name.encode('latin-1', 'replace').decode('latin-1'),
            fill='black',
        )
    return canvas
