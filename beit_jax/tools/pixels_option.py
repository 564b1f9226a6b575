"""What the pictures of the tools are: size, channels, bits, and which channels are drawn."""

import argparse

from beit_jax.data.config import DataConfig, PixelFormat, sides
from beit_jax.errors import check
from beit_jax.tools import arguments


def size(text: str) -> int | tuple[int, int]:
    """`64`, or `64,96` for height and width."""
    sides = tuple(map(int, text.split(',')))
    if len(sides) > 2:
        raise ValueError
    return sides[0] if len(sides) == 1 else sides


def pixel_format(options: argparse.Namespace) -> PixelFormat:
    """What the pictures are by --data.channels, bits and bands."""
    channels, bits, bands = (
        getattr(options, f'data.{name}') for name in ('channels', 'bits', 'bands')
    )
    return PixelFormat(channels, bits, tuple(bands))


def picture_size(options: argparse.Namespace, tokenizer) -> int | tuple[int, int]:
    """--image_size, or what the tokenizer is for: the sides of the pictures that it is shown."""
    size = options.image_size or tokenizer.image_size
    check(
        all(side > 0 and side % tokenizer.factor == 0 for side in sides(size)),
        f'--image_size={size} is not a multiple of {tokenizer.factor}, the pixels per token.',
    )
    return size


def format_for(options: argparse.Namespace, tokenizer) -> PixelFormat:
    """What the pictures of --images are: --data.channels, bits and bands.

    Raises:
      RequestError: a tokenizer is for other channels.
    """
    pixels = pixel_format(options)
    check(
        pixels.num_channels == tokenizer.channels and pixels.bits in (8, 16),
        f'{options.tokenizer} is for pictures of {tokenizer.channels} channels, --data reads '
        f'{pixels.num_channels} of {pixels.bits} bits: set --data.channels, --data.bits or '
        '--data.bands.',
    )
    return pixels


def data_for(options: argparse.Namespace, tokenizer, size: int | tuple[int, int]) -> DataConfig:
    """The data of --data at the size that a tokenizer is shown.

    Raises:
      RequestError: they have other channels.
    """
    format_for(options, tokenizer)
    return arguments.data_config(options, image_size=size)


def add_bands(parser: argparse.ArgumentParser) -> None:
    """Adds --bands: which channels are drawn."""
    parser.add_argument(
        '--bands',
        type=bands,
        default=(),
        metavar='R,G,B',
        help='which channels of those that the model reads are drawn, from 0: three or one (the '
        'first three, or the first)',
    )


def bands(text: str) -> tuple[int, ...]:
    """The numbers of --bands."""
    numbers = tuple(map(int, text.split(',')))
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise ValueError
    return numbers


def check_bands(options: argparse.Namespace, channels: int) -> None:
    """Raises RequestError where --bands names a channel that there is not."""
    check(
        all(band < channels for band in options.bands),
        f'--bands={",".join(map(str, options.bands))}: there are channels 0 to {channels - 1}.',
    )
