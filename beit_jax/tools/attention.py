"""Where an encoder looks: self-attention maps of reference points, over the image (paper, Figure
2). One row a picture, one column a point."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from beit_jax.data.pictures.load import load_images
from beit_jax.errors import RequestError, check
from beit_jax.tools import arguments
from beit_jax.tools.reconstruct import CELL, grid_picture

POINTS = '0.25,0.25 0.75,0.25 0.5,0.5 0.25,0.75 0.75,0.75'
# inferno, at five places
_COLOURS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)


def parse_points(text: str) -> list[tuple[float, float]]:
    """'x,y x,y ...' -> places as shares of width and height, in [0, 1)."""
    try:
        points = [(float(x), float(y)) for x, y in (point.split(',') for point in text.split())]
    except ValueError as error:
        raise RequestError(
            f'--points={text!r}: give x,y pairs as shares of width and height, for example '
            f'"{POINTS}".'
        ) from error
    check(
        bool(points) and all(0 <= share < 1 for point in points for share in point),
        f'--points={text!r}: shares are at least 0 and below 1.',
    )
    return points


def attention_maps(weights_BHNN, grid: tuple[int, int], points, head: int | None) -> np.ndarray:
    """How much the patch under each point looks at every patch, float32 [B, points, rows, columns];
    the mean of the heads where head is None."""
    weights_BNN = np.asarray(weights_BHNN.mean(axis=1) if head is None else weights_BHNN[:, head])
    patches = [1 + int(y * grid[0]) * grid[1] + int(x * grid[1]) for x, y in points]
    return weights_BNN[:, patches, 1:].reshape(len(weights_BNN), len(points), *grid)


def overlay(image, map_hw, point) -> np.ndarray:
    """The picture in grey under its map, dark to bright, with a ring at the point; uint8 [CELL,
    CELL, 3]."""
    strength = (map_hw - map_hw.min()) / max(float(np.ptp(map_hw)), 1e-12)
    large = np.asarray(
        Image.fromarray(strength.astype(np.float32)).resize((CELL, CELL), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack(
        [np.interp(large, places, _COLOURS[:, channel]) for channel in range(3)], axis=-1
    )
    grey = np.asarray(
        Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC).convert('L')
    )[..., None]
    canvas = Image.fromarray(np.rint(0.4 * grey + 0.6 * heat).astype(np.uint8))
    x, y = (share * CELL for share in point)
    ImageDraw.Draw(canvas).ellipse((x - 5, y - 5, x + 5, y + 5), outline='white', width=2)
    return np.asarray(canvas)


def run(options) -> None:
    points, model = parse_points(options.points), arguments.load(options.checkpoint)
    depth, heads = model.architecture['depth'], model.architecture['heads']
    layer = options.layer if options.layer else depth
    check(1 <= layer <= depth, f'--layer={options.layer}: the encoder has layers 1 to {depth}.')
    check(
        0 <= options.head <= heads,
        f'--head={options.head}: the encoder has heads 1 to {heads}; 0 is their mean.',
    )
    check(options.limit > 0, f'--limit is {options.limit}: use at least 1.')
    if options.images == 'shapes':
        from beit_jax.data.sources.shapes import ShapesSource

        source = ShapesSource(options.limit, model.image_size, 'easy', 'evaluate')
        images = np.stack([source.read(i).image for i in range(options.limit)])
    else:
        images = load_images(options.images, model.image_size, options.limit, model.crop)[0]
    maps = attention_maps(
        jax.device_get(model.attention(images, layer - 1)),
        model.grid,
        points,
        options.head - 1 if options.head else None,
    )
    columns = [images] + [
        [overlay(image, rows[i], point) for image, rows in zip(images, maps)]
        for i, point in enumerate(points)
    ]
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    grid_picture(
        [np.asarray(column) / 255 for column in columns],
        ('original', *(f'{x:g}, {y:g}' for x, y in points)),
    ).save(output)
    print(
        f'{len(images)} images, layer {layer}, '
        f'{f"head {options.head}" if options.head else "mean of the heads"} -> {output}'
    )


def _arguments():
    parser = arguments.parser(
        'attention',
        __doc__,
        'python -m beit_jax.tools.attention --checkpoint runs/quickstart/pretrain --images shapes '
        '--output attention.png',
    )
    parser.add_argument(
        '--checkpoint',
        required=True,
        help='a checkpoint, a work directory, or a file or folder of PyTorch weights',
    )
    parser.add_argument(
        '--images',
        required=True,
        help='folder, image file, .npy array [B, H, W, 3], or `shapes` (the built-in pictures)',
    )
    parser.add_argument('--output', required=True, help='the PNG to write')
    parser.add_argument(
        '--points',
        default=POINTS,
        help=f'reference points x,y as shares of width and height ("{POINTS}")',
    )
    parser.add_argument('--layer', type=int, default=0, help='from 1; 0 is the last (0)')
    parser.add_argument('--head', type=int, default=0, help='from 1; 0 is the mean of all (0)')
    parser.add_argument('--limit', type=int, default=4, help='at most so many images (4)')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
