"""Where an encoder looks: self-attention maps of reference points, over the image
(paper, Figure 2). One row a picture, one column a point."""

import numpy as np

from beit_jax.data.pictures.grid import grid_picture, under_map, visible
from beit_jax.data.pictures.load import load_images
from beit_jax.errors import RequestError, check
from beit_jax.tools import arguments, checkpoint_option, images_option, outputs, pixels_option

POINTS = '0.25,0.25 0.75,0.25 0.5,0.5 0.25,0.75 0.75,0.75'


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


def run(options) -> None:
    points = parse_points(options.points)
    check(options.limit > 0, f'--limit is {options.limit}: use at least 1.')
    output = outputs.file('--output', options.output, [options.images], outputs.PICTURE)
    model = arguments.load(options.checkpoint)
    heads = model.architecture['heads']
    layer, head = model.layer(options.layer), options.head
    check(
        0 <= head <= heads,
        f'--head={head}: the encoder has heads 1 to {heads}; 0 is their mean.',
    )
    pixels_option.check_bands(options, model.pixels.num_channels)
    left_out = images_option.LeftOut(options)
    if options.images == 'shapes':
        images = images_option.built_in_pictures(
            options.limit, model.image_size, pixels=model.pixels
        )
    else:
        which = options.images, model.image_size, options.limit, model.crop, left_out
        images, _ = load_images(*which, model.reading)
    weights_BHNN = np.asarray(model.attention(images, layer))
    maps = attention_maps(weights_BHNN, model.grid, points, head - 1 if head else None)
    shown = visible(images, options.bands)
    columns, titles = [shown], ['original']
    for i, (x, y) in enumerate(points):
        looks = [under_map(image, map_hw, (x, y)) for image, map_hw in zip(shown, maps[:, i])]
        columns.append(np.stack(looks))
        titles.append(f'{x:g}, {y:g}')
    output.parent.mkdir(parents=True, exist_ok=True)
    grid_picture(columns, titles).save(output)
    which = f'head {head}' if head else 'mean of the heads'
    print(f'{len(images)} images{left_out}, layer {layer}, {which} -> {output}')


def _arguments():
    parser = arguments.parser(
        'attention',
        __doc__,
        'python -m beit_jax.tools.attention --checkpoint runs/quickstart/pretrain --images shapes '
        '--output attention.png',
    )
    checkpoint_option.add(parser)
    images_option.add(parser, ', or `shapes` (the built-in pictures)', required=True)
    pixels_option.add_bands(parser)
    parser.add_argument('--output', required=True, help='the PNG to write')
    parser.add_argument(
        '--points',
        default=POINTS,
        help=f'reference points x,y as shares of width and height ("{POINTS}")',
    )
    parser.add_argument('--layer', type=int, default=-1, help='from 1, or from the last, -1 (-1)')
    parser.add_argument('--head', type=int, default=0, help='from 1; 0 is the mean of all (0)')
    parser.add_argument('--limit', type=int, default=4, help='at most so many images (4)')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
