"""The pictures that tools are given, or draw."""

import argparse
import sys

import numpy as np

from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError, check
from beit_jax.tools import arguments

WHAT = 'folder, image file or .npy array [B, H, W, 3]'


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


def add(parser: argparse.ArgumentParser, more: str, **settings) -> None:
    """Adds --images; `more`: what its help says besides."""
    parser.add_argument('--images', type=arguments.path, help=WHAT + more, **settings)
    add_strict(parser)


def picture_size(options: argparse.Namespace, tokenizer) -> int:
    """--image_size, or what the tokenizer is for: the side of the pictures that it is shown."""
    size = options.image_size or tokenizer.image_size
    check(
        size > 0 and size % tokenizer.factor == 0,
        f'--image_size={size} is not a multiple of {tokenizer.factor}, the pixels per token.',
    )
    return size


def built_in_pictures(count: int, size: int, level: str = 'easy') -> np.ndarray:
    """The first held-out ones, uint8 [count, size, size, 3]: those of `--images shapes`."""
    source = ShapesSource(count, size, level, 'evaluate')
    return np.stack([source.read(i).image for i in range(count)])
