"""The pictures that tools are given, or draw."""

import argparse
from collections.abc import Sequence
import dataclasses
import sys

import numpy as np

from beit_jax.data.config import DataConfig, PixelFormat, View, sides
from beit_jax.data.pictures.load import square
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import RequestError, check
from beit_jax.inference.reading import readable_batches
from beit_jax.tools import arguments

HELD_OUT = 'held_out'  # of --images: the held-out pictures of a run
WHAT = 'folder, image file or .npy array [B, H, W, channels]'


# settings of the data that a model knows of the pictures it takes
OF_MODEL = ('evaluate_crop', 'channels', 'bits', 'bands', 'max_pixels', 'endings', 'exif')


def of_model(model) -> dict:
    """What a model says of `OF_MODEL`, and its `image_size`: it is shown pictures as in its
    training."""
    reading = model.reading._asdict()
    pixels = dataclasses.asdict(reading.pop('pixels'))
    return {'image_size': model.image_size, 'evaluate_crop': model.crop, **pixels, **reading}


class LeftOut:
    """What `leave_out` of `image_batches` is for the tools: names on stderr the pictures that
    cannot be read, and counts them. With --strict the first one ends the tool."""

    def __init__(self, options: argparse.Namespace):
        self._strict, self.count = options.strict, 0

    def __call__(self, name: str, error: RequestError) -> None:
        if self._strict:
            raise error
        print(f'warning: {error} It is left out.', file=sys.stderr)
        self.count += 1

    def __str__(self):
        return f' ({self.count} that cannot be read left out: see above)' if self.count else ''


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Adds --strict, for `LeftOut`."""
    parser.add_argument(
        '--strict', action='store_true', help='end where a picture cannot be read (leave it out)'
    )


def add_part(parser: argparse.ArgumentParser) -> None:
    """Adds --part, which of a data set's images."""
    parser.add_argument(
        '--part',
        choices=('train', 'evaluate'),
        default='train',
        help='of --data: the training or the held-out images (train)',
    )


def add(parser: argparse.ArgumentParser, more: str, **settings) -> None:
    """Adds --images; `more`: what its help says besides."""
    parser.add_argument('--images', type=arguments.path, help=WHAT + more, **settings)
    add_strict(parser)


def built_in_pictures(
    count: int,
    size: int | tuple[int, int],
    level: str = 'easy',
    pixels: PixelFormat = PixelFormat(),
) -> np.ndarray:
    """The first held-out ones at `size`, uint8 [count, height, width, 3]: `--images shapes`.

    Raises:
      RequestError: `pixels`, what a model takes, are not RGB of 8 bits.
    """
    check(
        pixels.is_rgb,
        f'--images=shapes draws RGB of 8 bits, this model reads {pixels.num_channels} of '
        f'{pixels.channels} channels of {pixels.bits} bits: give pictures of that kind.',
    )
    source = ShapesSource(count, max(sides(size)), level, 'evaluate')
    drawn = [source.read(i).image for i in range(count)]
    return np.stack(drawn if isinstance(size, int) else [square(image, size) for image in drawn])


def held_out(
    data: DataConfig, views: Sequence[View], limit: int, left_out: LeftOut
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(each view of at most `limit` pictures, their names): evenly spread over those that a run
    holds out, `--images held_out`.

    Raises:
      RequestError: it holds none out, they are not there, or none of them can be read.
    """
    source = open_source(data, 'evaluate')
    given = f'--images={HELD_OUT}'
    check(source is not None, f'{given}: this run holds no pictures out. Give a folder of some.')
    source = Subset(source, spread(source, limit))
    made = next(readable_batches(source, views, data, limit, left_out), None)
    check(made is not None, f'{given}: none of them can be read.')
    return made, [source.name(index) for index in made['index']]
