"""What a data set holds: every example read as training would, decoded in full, and counted."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import hashlib
import io
import os
import time
import typing

import numpy as np
from PIL import Image
from tqdm import tqdm

from beit_jax.data.pictures.boxes import BadImageError, FormatError
from beit_jax.data.pictures.read import PARSER_ERRORS, orientation_of
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import spread

SMALL, LONG = 32, 10  # a shorter side in pixels and an aspect ratio to wonder about
_NPY = b'\x93NUMPY'
SIDE = 224  # pixels, what models are shown
BLOCK = 1024  # examples handed to the threads at a time, so that millions do not wait in a queue
FORMATS = {
    'JPEG': ('.jpg', '.jpeg', '.jfif', '.jpe'),
    'PNG': ('.png',),
    'WEBP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
    'BMP': ('.bmp',),
    'GIF': ('.gif',),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
}
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
    orientation: int = 1  # by EXIF; 1 is upright
    # of pictures that are not RGB of 8 bits: means of x and of x * x of each channel, [2, C]
    moments: np.ndarray | None = None


def look_at(source: Source, index: int, decode: Callable) -> Look:
    """Reads an example and decodes it; called from many threads."""
    try:
        image, label = source.read(index)
    except OSError as error:
        return Look(error.strerror or str(error))
    flaw, promised, moments, pixels = '', True, None, np.empty((0, 0, 0))
    try:
        pixels = decode(image)
        moments = _moments(pixels)
    except BadImageError as error:
        flaw, promised = str(error), not isinstance(error, FormatError)
    if isinstance(image, np.ndarray) or image.startswith(_NPY):
        is_file = isinstance(image, bytes)
        size, form, oddities, turned = len(image) if is_file else image.nbytes, 'array', [], 1
        height, width, channels = pixels.shape if is_file else image.shape
        mode = 'RGB' if moments is None else f'{channels} x {pixels.dtype}'
    else:
        size = len(image)
        width, height, form, mode, oddities, turned = _header(image, source.name(index))
        if flaw and promised and form not in (*FORMATS, 'unknown'):
            flaw += f' but {form}'
        elif not image:
            flaw += ' (empty)'
    if 0 < min(width, height) < SMALL:
        oddities.append(f'smaller than {SMALL} pixels')
    if max(width, height) > LONG * min(width, height):
        oddities.append(f'aspect ratio above {LONG}')
    counted = digest(image), size, width, height, form, mode, tuple(oddities), turned, moments
    return Look(flaw, label, *counted)


def _moments(pixels: np.ndarray) -> np.ndarray | None:
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return None
    shares = pixels.reshape(-1, pixels.shape[2]) / np.iinfo(pixels.dtype).max
    return np.stack([shares.mean(0), np.square(shares).mean(0)])


def _header(image: bytes, name: str):
    """(width, height, format, mode, oddities, EXIF orientation) of a file, by Pillow; pixels are
    not decoded."""
    try:
        with Image.open(io.BytesIO(image)) as header:
            # MPO: a JPEG that others follow
            form = 'JPEG' if header.format == 'MPO' else header.format
            frames = getattr(header, 'n_frames', 1) if form in FORMATS else 1
            turned = orientation_of(header)
    except PARSER_ERRORS:
        return 0, 0, 'unknown', 'unknown', ['a header that Pillow cannot read'], 1
    oddities = []
    named = [other for other in FORMATS if name.lower().endswith(FORMATS[other])]
    if named and form not in named:
        oddities.append(f'a {form} named {os.path.splitext(name)[1]}')
    if frames > 1:
        oddities.append('several frames, of which training sees the first')
    turned = turned if turned in range(1, 9) else 1
    if turned > 1:
        oddities.append(f'EXIF orientation {turned}, which training ignores')
    return *header.size, form, header.mode, oddities, turned


def digest(image: bytes | np.ndarray) -> int:
    """64 bits that tell images apart: among ten million, two that differ share them with
    probability 3e-6."""
    content = image if isinstance(image, bytes) else image.tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little')


def in_threads(function: Callable, indices: np.ndarray, workers: int, title: str) -> Iterator:
    """`function(index)` of all indices, in order; a bar on stderr where that is a terminal."""
    bar = tqdm(total=len(indices), desc=title, unit='image', disable=None, dynamic_ncols=True)
    with ThreadPoolExecutor(workers) as pool, bar as progress:
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
    rows, formats, modes, turned = np.zeros(len(indices), ROW), Counter(), Counter(), Counter()
    moments, count = 0.0, 0
    # reason -> indices
    corrupt, suspicious = defaultdict(lambda: array('q')), defaultdict(lambda: array('q'))
    looks = in_threads(lambda index: look_at(source, index, decode), indices, workers, 'decoding')
    for row, look in enumerate(looks):
        rows[row] = not look.flaw, look.label, look.digest, look.bytes, look.width, look.height
        if look.flaw:
            corrupt[look.flaw].append(indices[row])
            continue
        formats[look.format] += 1
        if look.moments is not None:
            moments, count = moments + look.moments, count + 1
        modes[look.mode] += 1
        turned[look.orientation] += 1
        for oddity in look.oddities:
            suspicious[oddity].append(indices[row])
    seconds = time.perf_counter() - began
    indices_good, good = indices[rows['good']], rows[rows['good']]
    labels, sizes = good['label'], good[good['width'] > 0]
    shorter = np.minimum(sizes['width'], sizes['height'])
    unlabelled = np.flatnonzero((labels < 0) | (labels >= max(1, len(source.class_names))))
    for row in unlabelled:
        suspicious[f'the label {labels[row]}, which no class has'].append(indices_good[row])
    complete, mean_bytes = len(indices) == len(source), float(rows['bytes'].mean())
    return {
        'examples': len(source),
        'examined': len(indices),
        'estimated': not complete,
        **_classes(source, np.delete(labels, unlabelled), complete),
        'labelled': _all_labels(source),
        'formats': dict(formats.most_common()),
        'modes': dict(modes.most_common()),
        'exif_orientations': {str(each): turned[each] for each in sorted(turned) if each > 1},
        'width': _extent(sizes['width']),
        'height': _extent(sizes['height']),
        'share_below_224': float(np.mean(shorter < SIDE)) if len(sizes) else None,
        'bytes': {'mean': mean_bytes, 'total': round(mean_bytes * len(source))},
        'channels': _channels(moments, count),
        'corrupt': _named(source, corrupt),
        'corrupt_share': 1 - len(good) / len(rows),
        'labels_without_class': len(unlabelled),
        'suspicious': _named(source, suspicious),
        **_copies(source, indices_good, good['digest'], held_out, limit, workers),
        'seconds': seconds,
        'images_per_second': len(indices) / seconds,
    }


def empty_folders(path: str, source: Source) -> list[str]:
    """Folders beside those of the classes that hold no image and so are no class."""
    if not source.class_names or not os.path.isdir(path):
        return []
    folders = [entry.name for entry in os.scandir(path) if entry.is_dir()]
    known = set(source.class_names)
    return sorted(name for name in folders if not name.startswith('.') and name not in known)


def _classes(source, labels, complete: bool) -> dict:
    names = source.class_names
    counts = np.bincount(labels, minlength=len(names)) if names else np.zeros(0, int)
    entry = lambda label: {'name': names[label], 'examples': int(counts[label])}
    empty = np.flatnonzero(counts == 0) if complete else ()
    return {
        'classes': len(counts),
        'smallest_class': entry(np.argmin(counts)) if names else None,
        'largest_class': entry(np.argmax(counts)) if names else None,
        'empty_classes': [names[label] for label in empty],
    }


def _all_labels(source) -> dict | None:
    """The smallest and the largest class of all examples, where labels are known without reading
    them."""
    labels, names = getattr(source, 'labels', None), source.class_names
    if labels is None or not names:
        return None
    counts = np.bincount(labels, minlength=len(names))
    return {
        end: {'name': names[label], 'examples': int(counts[label])}
        for end, label in (('min', np.argmin(counts)), ('max', np.argmax(counts)))
    }


def _extent(sizes) -> dict | None:
    if not len(sizes):
        return None
    return {'min': int(sizes.min()), 'median': float(np.median(sizes)), 'max': int(sizes.max())}


def _channels(moments, count: int) -> dict | None:
    """Mean and deviation of each channel, for config.data.mean and std; None for RGB of 8 bits."""
    if not count:
        return None
    mean, square = moments / count
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return {'mean': mean.round(4).tolist(), 'std': deviation.round(4).tolist()}


def _named(source, found: dict) -> list[dict]:
    pairs = sorted((index, reason) for reason, indices in found.items() for index in indices)
    return [{'name': source.name(index), 'reason': reason} for index, reason in pairs]


def _copies(source, indices, digests, held_out, limit, workers) -> dict:
    """Examples, and held-out ones, whose bytes are those of an example before them."""

    def pairs(copied_from, copies, originals):
        """Of index `copies` of a source with the rows of their originals."""
        return [
            {'name': copied_from.name(int(copy)), 'same_as': source.name(int(indices[original]))}
            for copy, original in zip(copies, originals)
        ]

    originals = _originals(digests, digests)
    copies = np.flatnonzero(originals < np.arange(len(digests)))
    found = {'duplicates': pairs(source, indices[copies], originals[copies]), 'overlap': None}
    if held_out is not None:
        held = spread(held_out, limit)
        read = in_threads(lambda index: _digest(held_out, index), held, workers, 'evaluation')
        originals = _originals(np.fromiter(read, np.uint64, len(held)), digests)
        copies = originals >= 0
        found['evaluate_examined'] = len(held)
        found['overlap'] = pairs(held_out, held[copies], originals[copies])
    return found


def _originals(digests, among):
    """For each digest the row of the first of `among` that is equal, or -1."""
    if not len(among):
        return np.full(len(digests), -1)
    distinct, first = np.unique(among, return_index=True)
    place = np.searchsorted(distinct, digests).clip(max=len(distinct) - 1)
    return np.where(distinct[place] == digests, first[place], -1)


def _digest(source, index):
    try:
        return digest(source.read(index).image)
    except OSError:
        return 0
