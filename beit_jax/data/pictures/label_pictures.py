"""Label maps as pictures: a PNG whose pixels are the classes, and an overview of image, truth and
prediction with a legend."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from beit_jax.data.config import IGNORED

# of an overview, in pixels: a picture's longer side, between pictures, above them, a line of the
# legend, and its width
SIDE, GAP, TOP, LINE, LEGEND = 360, 6, 20, 14, 200
MOST = 16  # classes in the legend


def palette() -> np.ndarray:
    """The colours of the classes 0 to 254, and black for what has none (255); uint8 [256, 3].

    Far apart for small numbers: the three lowest bits of class + 1 are the highest of red, green
    and blue, and so on (PASCAL VOC's law).
    """
    numbers = np.arange(1, 257) % 256
    bits = (numbers[:, None] >> np.arange(8)) & 1  # lowest first
    channels = [bits[:, channel::3] for channel in range(3)]
    values = [channel @ (128 >> np.arange(channel.shape[1])) for channel in channels]
    return np.stack(values, axis=1).astype(np.uint8)


def label_png(label_map: np.ndarray) -> Image.Image:
    """uint8 [H, W] -> a picture with a palette, whose pixel values are the classes."""
    image = Image.fromarray(label_map)
    image.putpalette(palette().ravel().tolist())
    return image


def overview(
    image: np.ndarray, maps: dict[str, np.ndarray], class_names: Sequence[str]
) -> Image.Image:
    """One picture: the image uint8 [H, W, 3], each label map (uint8 [H, W], by its title), the last
    of them laid over the image, and the classes that are there."""
    colours = palette()
    pictures = {'image': image}
    pictures |= {title: colours[label_map] for title, label_map in maps.items()}
    pictures['overlay'] = _laid_over(image, list(maps.values())[-1], colours)
    share = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * share)) for side in image.shape[:2])
    classes = _most_frequent(np.concatenate([label_map.ravel() for label_map in maps.values()]))
    legend = GAP + len(pictures) * (width + GAP)  # where it begins
    lower = max(height, len(classes) * LINE)
    canvas = Image.new('RGB', (legend + LEGEND, TOP + lower + GAP), 'white')
    draw = ImageDraw.Draw(canvas)
    for number, (title, pixels) in enumerate(pictures.items()):
        left = GAP + number * (width + GAP)
        draw.text((left, 4), title, fill='black')
        smooth = title in ('image', 'overlay') and share < 1
        method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        canvas.paste(Image.fromarray(pixels).resize((width, height), method), (left, TOP))
    for row, number in enumerate(classes):
        top = TOP + row * LINE
        box = legend, top + 1, legend + LINE - 3, top + LINE - 3
        draw.rectangle(box, fill=tuple(colours[number].tolist()))
        name = class_names[number] if number < len(class_names) else str(number)
        shown = name.encode('latin-1', 'replace').decode('latin-1')  # what Pillow's own font has
        draw.text((legend + LINE + 2, top), shown, fill='black')
    return canvas


def _laid_over(image, label_map, colours):
    """The image, halfway to the colours of the classes where there is one."""
    blend = (image.astype(np.uint16) + colours[label_map]) // 2
    return np.where((label_map == IGNORED)[..., None], image, blend).astype(np.uint8)


def _most_frequent(labels):
    """The classes in `labels`, at most 16, the most frequent first."""
    counts = np.bincount(labels, minlength=256)[:IGNORED]
    return [number for number in np.argsort(-counts, kind='stable')[:MOST] if counts[number]]
