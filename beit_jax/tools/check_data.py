"""Can this data set be trained on? Reads it as training would, decodes every picture in full, and says what is there, what is wrong, how fast
that was, and how to train on it. Exit status 2: it is not usable as it is."""
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
import hashlib
import io
import json
import math
import os
from pathlib import Path
import shlex
import struct
import time
import typing
import warnings

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from beit_jax.config import check
from beit_jax.data.config import DataConfig
from beit_jax.data.sources import Source, open_source, spread
from beit_jax.data.transforms import BadImageError, whole_box
from beit_jax.tools import arguments

SMALL, LONG, SIDE = 32, 10, 224  # a shorter side to wonder about, an aspect ratio to wonder about, and what models are shown; pixels
SHOWN = 20  # names on the terminal; the JSON has all
BLOCK = 1024  # examples handed to the threads at a time, so that millions do not wait in a queue
FORMATS = {'JPEG': ('.jpg', '.jpeg'), 'PNG': ('.png',)}
ROW = np.dtype([('good', '?'), ('label', 'i8'), ('digest', 'u8'), ('bytes', 'i8'), ('width', 'i4'), ('height', 'i4')])


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
        flaw += f' but {form}' if flaw and form not in (*FORMATS, 'unknown') else ' (empty)' if not image else ''
    if 0 < min(width, height) < SMALL:
        oddities.append(f'smaller than {SMALL} pixels')
    if max(width, height) > LONG * min(width, height):
        oddities.append(f'aspect ratio above {LONG}')
    return Look(flaw, label, digest(image), len(image) if isinstance(image, bytes) else image.nbytes, width, height, form, mode, tuple(oddities))


def _header(image: bytes, name: str):
    """(width, height, format, mode, oddities) from the first bytes of a file, by Pillow; pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(image)) as header:
            form = 'JPEG' if header.format == 'MPO' else header.format  # MPO: a JPEG that others follow
            frames = getattr(header, 'n_frames', 1) if form in FORMATS else 1
            turned = _orientation(header)
    except (OSError, SyntaxError, ValueError):
        return 0, 0, 'unknown', 'unknown', ['a header that Pillow cannot read']
    endings = [other for other in FORMATS if name.lower().endswith(FORMATS[other])]
    oddities = {f'a {form} named {os.path.splitext(name)[1]}': bool(endings) and form not in endings,
                'several frames, of which training sees the first': frames > 1,
                f'EXIF orientation {turned}, which training ignores': turned in range(2, 9)}
    return *header.size, form, header.mode, [oddity for oddity, present in oddities.items() if present]


def _orientation(header: Image.Image) -> int:
    try:  # getexif would decode a PNG that has none
        return header.getexif().get(ExifTags.Base.Orientation, 1) if 'exif' in header.info else 1
    except (SyntaxError, ValueError, struct.error):  # EXIF that nobody can read turns nothing
        return 1


def digest(image: bytes | np.ndarray) -> int:
    """64 bits that tell images apart: among ten million, two that differ share them with probability 3e-6."""
    return int.from_bytes(hashlib.blake2b(image if isinstance(image, bytes) else image.tobytes(), digest_size=8).digest(), 'little')


def in_threads(function: Callable, indices: np.ndarray, workers: int, title: str) -> Iterator:
    """`function(index)` of all indices, in order; a bar on stderr where that is a terminal."""
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(indices), desc=title, unit='image', disable=None, dynamic_ncols=True) as progress:
        for start in range(0, len(indices), BLOCK):
            for result in pool.map(function, indices[start:start + BLOCK].tolist()):
                yield result
                progress.update()


def measure(source: Source, held_out: Source | None, limit: int, workers: int, decode: Callable) -> dict:
    """What there is to say of a data set, under the names that --json has; where `limit` leaves examples out, estimated from the others.

    Memory: 33 bytes an example, and what names the faulty ones.
    """
    indices, began = spread(source, limit), time.perf_counter()
    rows, formats, modes = np.zeros(len(indices), ROW), Counter(), Counter()
    corrupt, suspicious = defaultdict(lambda: array('q')), defaultdict(lambda: array('q'))  # reason -> indices
    for row, look in enumerate(in_threads(lambda index: look_at(source, index, decode), indices, workers, 'decoding')):
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
    unlabelled = np.flatnonzero((good['label'] < 0) | (good['label'] >= max(1, len(source.class_names))))
    for row in unlabelled:
        suspicious[f'the label {good["label"][row]}, which no class has'].append(indices_good[row])
    return {
        'examples': len(source), 'examined': len(indices), 'estimated': len(indices) < len(source),
        **_classes(source, np.delete(good['label'], unlabelled), len(indices) == len(source)),
        'formats': dict(formats.most_common()), 'modes': dict(modes.most_common()),
        **{name: {'min': int(sizes[name].min()), 'median': float(np.median(sizes[name])), 'max': int(sizes[name].max())} if len(sizes) else None
           for name in ('width', 'height')},
        'share_below_224': float(np.mean(np.minimum(sizes['width'], sizes['height']) < SIDE)) if len(sizes) else None,
        'bytes': {'mean': float(rows['bytes'].mean()), 'total': round(float(rows['bytes'].mean()) * len(source))},
        'corrupt': _named(source, corrupt), 'corrupt_share': 1 - len(good) / len(rows), 'labels_without_class': len(unlabelled),
        'suspicious': _named(source, suspicious),
        **_copies(source, indices_good, good['digest'], held_out, limit, workers),
        'seconds': seconds, 'images_per_second': len(indices) / seconds,
    }


def _classes(source, labels, complete: bool) -> dict:
    counts = np.bincount(labels, minlength=len(source.class_names)) if source.class_names else []
    entry = lambda label: {'name': source.class_names[label], 'examples': int(counts[label])}
    return {'classes': len(counts), 'smallest_class': entry(np.argmin(counts)) if len(counts) else None,
            'largest_class': entry(np.argmax(counts)) if len(counts) else None,
            'empty_classes': [source.class_names[label] for label in np.flatnonzero(np.equal(counts, 0))] if complete else []}


def _named(source, found: dict) -> list[dict]:
    pairs = sorted((index, reason) for reason, indices in found.items() for index in indices)
    return [{'name': source.name(index), 'reason': reason} for index, reason in pairs]


def _copies(source, indices, digests, held_out, limit, workers) -> dict:
    """Examples, and held-out ones, whose bytes are those of an example before them."""
    distinct, first = np.unique(digests, return_index=True)

    def of(digests):
        """For each the row of the first example with its digest, or -1."""
        place = np.searchsorted(distinct, digests).clip(max=max(0, len(distinct) - 1))
        return np.where(distinct[place] == digests, first[place], -1) if len(distinct) else np.full(len(digests), -1)

    def name_pairs(names, rows, originals):
        return [{'name': names.name(int(row)), 'same_as': source.name(int(indices[original]))} for row, original in zip(rows, originals)]

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
        held_digests = np.fromiter(in_threads(read, held_indices, workers, 'evaluation'), np.uint64, len(held_indices))
        originals = of(held_digests)
        found |= {'evaluate_examined': len(held_indices),
                  'overlap': name_pairs(held_out, held_indices[originals >= 0], originals[originals >= 0])}
    return found


def empty_folders(data: DataConfig, source: Source) -> list[str]:
    """Folders beside those of the classes that hold no image and so are no class."""
    if data.name != 'folder' or not source.class_names or not os.path.isdir(data.path):
        return []
    return sorted(entry.name for entry in os.scandir(data.path)
                  if entry.is_dir() and not entry.name.startswith('.') and entry.name not in source.class_names)


def command(data: DataConfig, corrupt_share: float, start: str, *more: str) -> str:
    """The command line that trains on this data set."""
    default = DataConfig()
    chosen = {'name': data.name} | {name: value for name in arguments.DATA if (value := getattr(data, name)) != getattr(default, name)}
    if data.name == 'tfds':  # recipes expect ImageNet's
        chosen['evaluate_split'] = data.evaluate_split
    if corrupt_share > default.max_bad_share:
        chosen['max_bad_share'] = min(1.0, math.ceil(100 * corrupt_share + 1) / 100)  # a percent more: shares vary from step to step
    return shlex.join(['python', 'main.py', *start.split(), *(f'--config.data.{name}={value}' for name, value in chosen.items()), *more])


def problems(figures: dict, max_bad_share: float) -> list[str]:
    """Why training would not run, a line each."""
    bad, labels, looked = len(figures['corrupt']), figures['labels_without_class'], figures['examined']
    found = []
    if bad == looked:
        found.append(f'not one of {looked:,} examples can be used: repair them, or give another --data.path.')
    elif figures['corrupt_share'] > max_bad_share:
        found.append(f'{bad:,} of {looked:,} examples ({bad / looked:.2%}) are corrupt, more than --max_bad_share ({max_bad_share:.2%}): '
                     'remove or repair them, or raise it.')
    if labels:
        found.append(f'{labels:,} examples have a label that none of the {figures["classes"]} classes has: repair the data set.')
    return found


def report(figures: dict, path: str) -> str:
    """The figures in words."""
    estimated, looked = figures['estimated'], figures['examined']
    lines = [f'{path}: {figures["examples"]:,} examples, ' + (f'{figures["classes"]:,} classes' if figures['classes'] else 'no classes')]
    say = lambda title, text: lines.append(f'{title:12}{text}')
    if estimated:
        say('estimated', f'only {looked:,} evenly spread examples were looked at (--limit): all below is about them')
    if figures['classes']:
        ends = [f'{figures[name]["examples"]:,} ({figures[name]["name"]})' for name in ('smallest_class', 'largest_class')]
        say('classes', f'from {ends[0]} to {ends[1]} examples')
    if figures['empty_classes']:
        say('', f'{len(figures["empty_classes"]):,} without a usable image: {_first(figures["empty_classes"])}')
    for name in ('formats', 'modes'):
        say(name, ', '.join(f'{key} {count:,}' for key, count in figures[name].items()) or 'none')
    if figures['width']:
        for name in ('width', 'height'):
            say(name, '{min:,} to {max:,} pixels, median {median:,.0f}'.format(**figures[name]))
        say('', f'{figures["share_below_224"]:.1%} have a shorter side below {SIDE}')
    say('bytes', f'{figures["bytes"]["mean"]:,.0f} an image, {"about " * estimated}{figures["bytes"]["total"] / 1e6:,.1f} MB in all')
    say('speed', f'{figures["images_per_second"]:,.0f} images/s, read and decoded in full; {figures["seconds"]:,.1f} s')
    say('corrupt', f'{len(figures["corrupt"]):,} ({figures["corrupt_share"]:.2%})')
    lines += _listed(f'{entry["name"]}: {entry["reason"]}' for entry in figures['corrupt'])
    say('suspicious', f'{len(figures["suspicious"]):,}')
    by_reason = defaultdict(list)
    for entry in figures['suspicious']:
        by_reason[entry['reason']].append(entry['name'])
    lines += _listed(f'{reason} ({len(names):,}): {_first(names)}' for reason, names in by_reason.items())
    say('duplicates', f'{len(figures["duplicates"]):,} have the bytes of an example before them')
    lines += _listed(f'{entry["name"]} = {entry["same_as"]}' for entry in figures['duplicates'])
    if figures['overlap'] is not None:
        say('evaluation', f'{len(figures["overlap"]):,} of {figures["evaluate_examined"]:,} held-out images have the bytes of a training image')
        lines += _listed(f'{entry["name"]} = {entry["same_as"]}' for entry in figures['overlap'])
    lines += ['train with', *_listed(filter(None, (figures['command'], figures['finetune_command'])))]
    return '\n'.join(lines)


def _first(names: list[str], shown: int = 3) -> str:
    return ', '.join(names[:shown]) + ', ...' * (len(names) > shown)


def _listed(entries: Iterable[str]) -> list[str]:
    entries = [f'  {entry}' for entry in entries]
    return entries[:SHOWN] + [f'  and {len(entries) - SHOWN:,} more (--json has all)'] * (len(entries) > SHOWN)


def run(options) -> None:
    check(options.limit >= 0, f'--limit is {options.limit}: use a number of examples, or 0 for all.')
    check(0 <= options.max_bad_share <= 1, f'--max_bad_share is {options.max_bad_share}: use a share from 0 to 1.')
    check(not options.json or Path(options.json).absolute().parent.is_dir(), f'--json={options.json}: its folder does not exist.')
    data = arguments.data_config(options)
    Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow,
    warnings.filterwarnings('ignore', module='PIL')  # and what it says of them names no file
    source = open_source(data, 'train')
    from beit_jax.data.pipeline import image_ops  # here, because it starts TensorFlow
    decode = functools.partial(image_ops(data).decode_crop, box_of=whole_box)
    figures = measure(source, open_source(data, 'evaluate'), options.limit, data.workers or len(os.sched_getaffinity(0)), decode)
    figures['empty_classes'] += empty_folders(data, source)
    share = figures['corrupt_share']
    figures['problems'] = problems(figures, options.max_bad_share)
    figures['usable'] = not figures['problems']
    figures['command'] = command(data, share, '--config=configs/pretrain_imagenet1k.py:base --workdir=W', '--config.tokenizer.path=TOKENIZER')
    # in1k: the mean and deviation of that pre-training
    figures['finetune_command'] = command(data, share, '--config=configs/finetune_imagenet1k.py:base,in1k --workdir=F --config.init=W') \
        if source.class_names else None
    print(report(figures, data.path or data.name))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + '\n')
    check(figures['usable'], '\n'.join(figures['problems']))


def _arguments():
    parser = arguments.parser('check_data', __doc__, 'python -m beit_jax.tools.check_data --data.path /imagenet/train --data.evaluate_path '
                              '/imagenet/val --json train.json')
    parser.add_argument('--limit', type=int, default=0, metavar='N', help='look at N evenly spread examples only (0: all)')
    parser.add_argument('--max_bad_share', type=float, default=DataConfig.max_bad_share, metavar='SHARE',
                        help='of corrupt examples, above which the set is not usable (%(default)s)')
    parser.add_argument('--json', default='', metavar='FILE', help='also write the figures, and all names, to this file')
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
