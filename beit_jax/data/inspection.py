"""What a data set holds: every example read as training would, decoded in full, and counted."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import hashlib
import io
import os
import struct
import time
import typing

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from beit_jax.data.pictures.boxes import BadImageError
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import spread

# a shorter side to wonder about, an aspect ratio to wonder about, and what models are shown; pixels
SMALL, LONG, SIDE = 32, 10, 224
BLOCK = 1024  # examples handed to the threads at a time, so that millions do not wait in a queue
FORMATS = {'JPEG': ('.jpg', '.jpeg'), 'PNG': ('.png',)}
ROW = np.dtype(
    [
        ('good', '?'),
        ('label', 'i8'),
        ('digest', 'u8'),
        ('bytes', 'i8'),
        ('width', 'i4'),
        ('height', 'i4'),
    ]
)


class Look(typing.NamedTuple):
    """What one example is; sizes in pixels, 0 where its header cannot be read."""

    flaw: str = ''  # why training cannot use it; '' for a good one
    label: int = -1
    digest: int = 0  # of its bytes; 0 where they cannot be read
    bytes: int = 0
    width: int = 0
    height: int = 0
    format: str = 'unknown'
    mode: str = 'unknown'
    oddities: tuple[str, ...] = ()  # training can use it, but is it meant?


def look_at(source: Source, index: int, decode: Callable) -> Look:
    """Reads an example and decodes it; called from many threads."""
    try:
        image, label = source.read(index)
    except OSError as error:
        return Look(error.strerror or str(error))
    try:
        decode(image)
        flaw = ''
    except BadImageError as error:
        flaw = str(error)
    if isinstance(image, np.ndarray):
        (height, width), form, mode, oddities = image.shape[:2], 'array', 'RGB', []
    else:
        width, height, form, mode, oddities = _header(image, source.name(index))
        flaw += (
            f' but {form}'
            if flaw and form not in (*FORMATS, 'unknown')
            else ' (empty)'
            if not image
            else ''
        )
    if 0 < min(width, height) < SMALL:
        oddities.append(f'smaller than {SMALL} pixels')
    if max(width, height) > LONG * min(width, height):
        oddities.append(f'aspect ratio above {LONG}')
    return Look(
        flaw,
        label,
        digest(image),
        len(image) if isinstance(image, bytes) else image.nbytes,
        width,
        height,
        form,
        mode,
        tuple(oddities),
    )


def _header(image: bytes, name: str):
    """(width, height, format, mode, oddities) from the first bytes of a file, by Pillow; pixels are
    not decoded."""
    try:
        with Image.open(io.BytesIO(image)) as header:
            # MPO: a JPEG that others follow
            form = 'JPEG' if header.format == 'MPO' else header.format
            frames = getattr(header, 'n_frames', 1) if form in FORMATS else 1
            turned = _orientation(header)
    except (OSError, SyntaxError, ValueError):
        return 0, 0, 'unknown', 'unknown', ['a header that Pillow cannot read']
    endings = [other for other in FORMATS if name.lower().endswith(FORMATS[other])]
    oddities = {
        f'a {form} named {os.path.splitext(name)[1]}': bool(endings) and form not in endings,
        'several frames, of which training sees the first': frames > 1,
        f'EXIF orientation {turned}, which training ignores': turned in range(2, 9),
    }
    return (
        *header.size,
        form,
        header.mode,
        [oddity for oddity, present in oddities.items() if present],
    )


def _orientation(header: Image.Image) -> int:
    try:  # getexif would decode a PNG that has none
        return header.getexif().get(ExifTags.Base.Orientation, 1) if 'exif' in header.info else 1
    except (SyntaxError, ValueError, struct.error):  # EXIF that nobody can read turns nothing
        return 1


def digest(image: bytes | np.ndarray) -> int:
    """64 bits that tell images apart: among ten million, two that differ share them with
    probability 3e-6."""
    return int.from_bytes(
        hashlib.blake2b(
            image if isinstance(image, bytes) else image.tobytes(), digest_size=8
        ).digest(),
        'little',
    )


def in_threads(function: Callable, indices: np.ndarray, workers: int, title: str) -> Iterator:
    """`function(index)` of all indices, in order; a bar on stderr where that is a terminal."""
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(
            total=len(indices), desc=title, unit='image', disable=None, dynamic_ncols=True
        ) as progress,
    ):
        for start in range(0, len(indices), BLOCK):
            for result in pool.map(function, indices[start : start + BLOCK].tolist()):
                yield result
                progress.update()


def measure(
    source: Source, held_out: Source | None, limit: int, workers: int, decode: Callable
) -> dict:
    """What there is to say of a data set, under the names that --json has; where `limit` leaves
    examples out, estimated from the others.

    Memory: 33 bytes an example, and what names the faulty ones.
    """
    indices, began = spread(source, limit), time.perf_counter()
    rows, formats, modes = np.zeros(len(indices), ROW), Counter(), Counter()
    # reason -> indices
    corrupt, suspicious = defaultdict(lambda: array('q')), defaultdict(lambda: array('q'))
    for row, look in enumerate(
        in_threads(lambda index: look_at(source, index, decode), indices, workers, 'decoding')
    ):
        rows[row] = not look.flaw, look.label, look.digest, look.bytes, look.width, look.height
        if look.flaw:
            corrupt[look.flaw].append(indices[row])
            continue
        formats[look.format] += 1
        modes[look.mode] += 1
        for oddity in look.oddities:
            suspicious[oddity].append(indices[row])
    seconds = time.perf_counter() - began
    indices_good, good = indices[rows['good']], rows[rows['good']]
    sizes = good[good['width'] > 0]
    unlabelled = np.flatnonzero(
        (good['label'] < 0) | (good['label'] >= max(1, len(source.class_names)))
    )
    for row in unlabelled:
        suspicious[f'the label {good["label"][row]}, which no class has'].append(indices_good[row])
    return {
        'examples': len(source),
        'examined': len(indices),
        'estimated': len(indices) < len(source),
        **_classes(source, np.delete(good['label'], unlabelled), len(indices) == len(source)),
        'formats': dict(formats.most_common()),
        'modes': dict(modes.most_common()),
        **{
            name: {
                'min': int(sizes[name].min()),
                'median': float(np.median(sizes[name])),
                'max': int(sizes[name].max()),
            }
            if len(sizes)
            else None
            for name in ('width', 'height')
        },
        'share_below_224': float(np.mean(np.minimum(sizes['width'], sizes['height']) < SIDE))
        if len(sizes)
        else None,
        'bytes': {
            'mean': float(rows['bytes'].mean()),
            'total': round(float(rows['bytes'].mean()) * len(source)),
        },
        'corrupt': _named(source, corrupt),
        'corrupt_share': 1 - len(good) / len(rows),
        'labels_without_class': len(unlabelled),
        'suspicious': _named(source, suspicious),
        **_copies(source, indices_good, good['digest'], held_out, limit, workers),
        'seconds': seconds,
        'images_per_second': len(indices) / seconds,
    }


def _classes(source, labels, complete: bool) -> dict:
    counts = np.bincount(labels, minlength=len(source.class_names)) if source.class_names else []
    entry = lambda label: {'name': source.class_names[label], 'examples': int(counts[label])}
    return {
        'classes': len(counts),
        'smallest_class': entry(np.argmin(counts)) if len(counts) else None,
        'largest_class': entry(np.argmax(counts)) if len(counts) else None,
        'empty_classes': [
            source.class_names[label] for label in np.flatnonzero(np.equal(counts, 0))
        ]
        if complete
        else [],
    }


def _named(source, found: dict) -> list[dict]:
    pairs = sorted((index, reason) for reason, indices in found.items() for index in indices)
    return [{'name': source.name(index), 'reason': reason} for index, reason in pairs]


def _copies(source, indices, digests, held_out, limit, workers) -> dict:
    """Examples, and held-out ones, whose bytes are those of an example before them."""
    distinct, first = np.unique(digests, return_index=True)

    def of(digests):
        """For each the row of the first example with its digest, or -1."""
        place = np.searchsorted(distinct, digests).clip(max=max(0, len(distinct) - 1))
        return (
            np.where(distinct[place] == digests, first[place], -1)
            if len(distinct)
            else np.full(len(digests), -1)
        )

    def name_pairs(names, rows, originals):
        return [
            {'name': names.name(int(row)), 'same_as': source.name(int(indices[original]))}
            for row, original in zip(rows, originals)
        ]

    originals = of(digests)
    copies = np.flatnonzero(originals < np.arange(len(digests)))
    found = {'duplicates': name_pairs(source, indices[copies], originals[copies]), 'overlap': None}
    if held_out is not None:

        def read(index):
            try:
                return digest(held_out.read(index).image)
            except OSError:
                return 0

        held_indices = spread(held_out, limit)
        held_digests = np.fromiter(
            in_threads(read, held_indices, workers, 'evaluation'), np.uint64, len(held_indices)
        )
        originals = of(held_digests)
        found |= {
            'evaluate_examined': len(held_indices),
            'overlap': name_pairs(
                held_out, held_indices[originals >= 0], originals[originals >= 0]
            ),
        }
    return found
