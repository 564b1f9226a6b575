"""Small copies of large pictures: what a training decodes again and again is decoded once."""

import io
import os
from pathlib import Path
import typing

import numpy as np
from PIL import Image

from beit_jax import whole_files
from beit_jax.data.config import DataConfig
from beit_jax.data.inspection import in_threads
from beit_jax.data.pictures.boxes import whole_box
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.pictures.read import PARSER_ERRORS
from beit_jax.data.pipeline import AWAY, are_away
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import spread
from beit_jax.errors import RequestError, StorageError, check

QUALITY = 95  # of the JPEG files, without subsampling of colours
_LOOKED_AT = 64  # pictures, by whose headers their size is judged
_OF = '.copies.json'  # hidden, so that it is no picture


class Copies(typing.NamedTuple):
    written: int
    there: int  # that an earlier call had written
    bad: list[int]  # indices of pictures that cannot be read


def shorter_side(source: Source) -> int:
    """The median over some pictures, in pixels, by their headers; 0 where none can be read."""
    found = []
    for index in map(int, spread(source, _LOOKED_AT)):
        try:
            with Image.open(io.BytesIO(source.read(index).image)) as header:
                found.append(min(header.size))
        except PARSER_ERRORS:
            continue
    return int(np.median(found)) if found else 0


def write_copies(source: Source, config: DataConfig, size: int, output: Path) -> Copies:
    """Writes each picture as OUTPUT/CLASS/NUMBER.jpg, without CLASS where there are no classes: as
    training decodes it, its shorter side `size` pixels (by Lanczos), if it is longer. A call that
    was stopped is gone on with.

    Raises:
      RequestError: `output` has copies of other pictures, or of another size; pictures are not RGB
        of 8 bits; none can be read.
      StorageError: most of those that cannot be read are there no more.
    """
    check(config.pixels.is_rgb, 'copies are RGB of 8 bits: --data.channels, bits and bands do not.')
    of = {'pictures': source.fingerprint, 'size': size, 'exif': config.exif}
    if (output / _OF).exists():
        before = whole_files.read_json(output / _OF, 'remove the folder')
        check(
            before == of,
            f'{output} has copies of other pictures, or of another size: give another --output, or '
            'remove it.',
        )
    else:
        whole_files.refuse_existing(output)
    images, folders = image_ops(config), [name.replace('/', '_') for name in source.class_names]
    for folder in folders or ['']:
        (output / folder).mkdir(parents=True, exist_ok=True)
    whole_files.write(output / _OF, of)

    def write(index):
        """Whether it is written now; None where it cannot be read."""
        folder = output / (folders[source.label(index)] if folders else '')
        path = folder / f'{index:08}.jpg'
        if path.exists():
            return False
        try:
            pixels = images.decode_crop(source.read(index).image, whole_box, config.reading)
        except OSError:
            return None
        height, width = pixels.shape[:2]
        if size < min(height, width):
            shape = tuple(round(side * size / min(height, width)) for side in (height, width))
            (pixels,) = images.resize(pixels, [config.view('copy', shape, 'lanczos3')])
        part = folder / f'.{index:08}.part'
        Image.fromarray(pixels).save(part, 'JPEG', quality=QUALITY, subsampling=0)
        os.replace(part, path)
        return True

    found = list(in_threads(write, np.arange(len(source)), config.num_workers, 'copying'))
    bad = [index for index, written in enumerate(found) if written is None]
    if bad and are_away(source, bad[:_LOOKED_AT], config):
        raise StorageError(f'{len(bad)} pictures cannot be read, as {source.name(bad[0])}. {AWAY}')
    if len(bad) == len(found):
        raise RequestError(f'none of the {len(found)} pictures can be read: check_data says why.')
    return Copies(found.count(True), found.count(False), bad)
