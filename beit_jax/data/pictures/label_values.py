"""Annotations whose values are not the numbers of the classes: masks of 0 and 255, ids of 16 bits,
colours. classes.txt says what is which."""

import re
import typing

import numpy as np
from PIL import Image

from beit_jax.data.config import IGNORED
from beit_jax.errors import RequestError, check

NONE = '-'  # in the place of a class's name: the value is of no class
_VALUE = re.compile(r'\d{1,5}|#[0-9a-fA-F]{6}')


class Values(typing.NamedTuple):
    """Which value of a pixel is of which class."""

    values: np.ndarray  # int64 [V], sorted: 0 to 65535, or R * 65536 + G * 256 + B
    classes: np.ndarray  # uint8 [V], or 255: none
    colors: bool  # whether the values are colours


class Coded(typing.NamedTuple):
    """An annotation, and what its values are."""

    file: bytes
    values: Values


def parse(lines: list[str], where: str) -> tuple[tuple[str, ...], Values | None]:
    """(names of the classes, the values of each or None) of the lines of a classes.txt: names; or
    NAME, a tab, and the value, 0 to 65535 or #RRGGBB. Several lines of a name are one class.

    Raises:
      RequestError: some lines have a value and some none, numbers and colours are mixed, or a value
        is given twice; `where` is what the message begins with.
    """
    rows = [[part.strip() for part in line.split('\t')] for line in lines if line.strip()]
    valued = [row for row in rows if len(row) > 1 and _VALUE.fullmatch(row[-1])]
    if not valued:
        return tuple(row[-1] for row in rows), None
    texts = [row[-1] for row in valued]
    colors = texts[0].startswith('#')
    check(
        len(valued) == len(rows) and all(text.startswith('#') == colors for text in texts),
        f'{where}: give each class a value, NAME, a tab, and 0 to 65535 or #RRGGBB, all of one '
        'kind, or none.',
    )
    values = [int(text.lstrip('#'), 16 if colors else 10) for text in texts]
    names = tuple(dict.fromkeys(row[-2] for row in valued if row[-2] != NONE))
    classes = [IGNORED if row[-2] == NONE else names.index(row[-2]) for row in valued]
    twice = [text for text, value in zip(texts, values) if values.count(value) > 1]
    check(not twice, f'{where}: the value {twice and twice[0]} is given twice.')
    check(colors or max(values) < 2**16, f'{where}: a value is above 65535.')
    order = np.argsort(values)
    return names, Values(np.array(values)[order], np.array(classes, np.uint8)[order], colors)


def classes_of(image: Image.Image, values: Values, name: str) -> np.ndarray:
    """uint8 [H, W]: the class of each pixel of an annotation, or 255.

    Raises:
      RequestError: a value that is not among them, or a picture without such values; names the
        example `name`.
    """
    if values.colors:
        red, green, blue = np.moveaxis(np.asarray(image.convert('RGB'), np.int64), 2, 0)
        pixels = (red << 16) | (green << 8) | blue
    else:
        check(
            image.mode in ('L', 'P', '1') or image.mode.startswith('I'),
            f'the annotation of {name} is of mode {image.mode}, but classes.txt gives numbers: '
            'make it grey or of a palette, or give colours (#RRGGBB).',
        )
        pixels = np.asarray(image).astype(np.int64) * (255 if image.mode == '1' else 1)
    places = np.searchsorted(values.values, pixels).clip(max=len(values.values) - 1)
    wrong = pixels[values.values[places] != pixels]
    if wrong.size:
        value = f'#{wrong[0]:06x}' if values.colors else int(wrong[0])
        raise RequestError(
            f'the annotation of {name} has the value {value}, which classes.txt does not name: add '
            f'it, with the name {NONE} where it is of no class.'
        )
    return values.classes[places]
