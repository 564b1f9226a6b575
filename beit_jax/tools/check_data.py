"""Can this data set be trained on? Reads it as training would, decodes every picture in full, and
says what is there, what is wrong, how fast that was, and how to train on it. Exit status 2: it is
not usable as it is."""

from collections import defaultdict
from collections.abc import Iterable
import functools
import json
import math
import os
from pathlib import Path
import shlex
import warnings

from PIL import Image

from beit_jax.data.config import DataConfig
from beit_jax.data.inspection import SIDE, measure
from beit_jax.data.pictures.boxes import whole_box
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import Source
from beit_jax.errors import check
from beit_jax.tools import arguments

SHOWN = 20  # names on the terminal; the JSON has all


def empty_folders(data: DataConfig, source: Source) -> list[str]:
    """Folders beside those of the classes that hold no image and so are no class."""
    if data.name != 'folder' or not source.class_names or not os.path.isdir(data.path):
        return []
    return sorted(
        entry.name
        for entry in os.scandir(data.path)
        if entry.is_dir()
        and not entry.name.startswith('.')
        and entry.name not in source.class_names
    )


def command(data: DataConfig, corrupt_share: float, start: str, *more: str) -> str:
    """The command line that trains on this data set."""
    default = DataConfig()
    chosen = {'name': data.name} | {
        name: value
        for name in arguments.DATA
        if (value := getattr(data, name)) != getattr(default, name)
    }
    if data.name == 'tfds':  # recipes expect ImageNet's
        chosen['evaluate_split'] = data.evaluate_split
    if corrupt_share > default.max_bad_share:
        # a percent more: shares vary from step to step
        chosen['max_bad_share'] = min(1.0, math.ceil(100 * corrupt_share + 1) / 100)
    return shlex.join(
        [
            'python',
            'main.py',
            *start.split(),
            *(f'--config.data.{name}={value}' for name, value in chosen.items()),
            *more,
        ]
    )


def problems(figures: dict, max_bad_share: float) -> list[str]:
    """Why training would not run, a line each."""
    bad, labels, looked = (
        len(figures['corrupt']),
        figures['labels_without_class'],
        figures['examined'],
    )
    found = []
    if bad == looked:
        found.append(
            f'not one of {looked:,} examples can be used: repair them, or give another --data.path.'
        )
    elif figures['corrupt_share'] > max_bad_share:
        found.append(
            f'{bad:,} of {looked:,} examples ({bad / looked:.2%}) are corrupt, more than '
            f'--max_bad_share ({max_bad_share:.2%}): remove or repair them, or raise it.'
        )
    if labels:
        found.append(
            f'{labels:,} examples have a label that none of the {figures["classes"]} classes has: '
            'repair the data set.'
        )
    return found


def report(figures: dict, path: str) -> str:
    """The figures in words."""
    estimated, looked = figures['estimated'], figures['examined']
    lines = [
        f'{path}: {figures["examples"]:,} examples, '
        + (f'{figures["classes"]:,} classes' if figures['classes'] else 'no classes')
    ]
    say = lambda title, text: lines.append(f'{title:12}{text}')
    if estimated:
        say(
            'estimated',
            f'only {looked:,} evenly spread examples were looked at (--limit): all below is about '
            'them',
        )
    if figures['classes']:
        ends = [
            f'{figures[name]["examples"]:,} ({figures[name]["name"]})'
            for name in ('smallest_class', 'largest_class')
        ]
        say('classes', f'from {ends[0]} to {ends[1]} examples')
    if figures['empty_classes']:
        say(
            '',
            f'{len(figures["empty_classes"]):,} without a usable image: '
            f'{_first(figures["empty_classes"])}',
        )
    for name in ('formats', 'modes'):
        say(name, ', '.join(f'{key} {count:,}' for key, count in figures[name].items()) or 'none')
    if figures['width']:
        for name in ('width', 'height'):
            say(name, '{min:,} to {max:,} pixels, median {median:,.0f}'.format(**figures[name]))
        say('', f'{figures["share_below_224"]:.1%} have a shorter side below {SIDE}')
    say(
        'bytes',
        f'{figures["bytes"]["mean"]:,.0f} an image, '
        f'{"about " * estimated}{figures["bytes"]["total"] / 1e6:,.1f} MB in all',
    )
    say(
        'speed',
        f'{figures["images_per_second"]:,.0f} images/s, read and decoded in full; '
        f'{figures["seconds"]:,.1f} s',
    )
    say('corrupt', f'{len(figures["corrupt"]):,} ({figures["corrupt_share"]:.2%})')
    lines += _listed(f'{entry["name"]}: {entry["reason"]}' for entry in figures['corrupt'])
    say('suspicious', f'{len(figures["suspicious"]):,}')
    by_reason = defaultdict(list)
    for entry in figures['suspicious']:
        by_reason[entry['reason']].append(entry['name'])
    lines += _listed(
        f'{reason} ({len(names):,}): {_first(names)}' for reason, names in by_reason.items()
    )
    say('duplicates', f'{len(figures["duplicates"]):,} have the bytes of an example before them')
    lines += _listed(f'{entry["name"]} = {entry["same_as"]}' for entry in figures['duplicates'])
    if figures['overlap'] is not None:
        say(
            'evaluation',
            f'{len(figures["overlap"]):,} of {figures["evaluate_examined"]:,} held-out images have '
            'the bytes of a training image',
        )
        lines += _listed(f'{entry["name"]} = {entry["same_as"]}' for entry in figures['overlap'])
    lines += [
        'train with',
        *_listed(filter(None, (figures['command'], figures['finetune_command']))),
    ]
    return '\n'.join(lines)


def _first(names: list[str], shown: int = 3) -> str:
    return ', '.join(names[:shown]) + ', ...' * (len(names) > shown)


def _listed(entries: Iterable[str]) -> list[str]:
    entries = [f'  {entry}' for entry in entries]
    return entries[:SHOWN] + [f'  and {len(entries) - SHOWN:,} more (--json has all)'] * (
        len(entries) > SHOWN
    )


def run(options) -> None:
    check(
        options.limit >= 0, f'--limit is {options.limit}: use a number of examples, or 0 for all.'
    )
    check(
        0 <= options.max_bad_share <= 1,
        f'--max_bad_share is {options.max_bad_share}: use a share from 0 to 1.',
    )
    check(
        not options.json or Path(options.json).absolute().parent.is_dir(),
        f'--json={options.json}: its folder does not exist.',
    )
    data = arguments.data_config(options)
    Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow,
    warnings.filterwarnings('ignore', module='PIL')  # and what it says of them names no file
    source = open_source(data, 'train')
    from beit_jax.data.pictures.decode import image_ops  # here, because it starts TensorFlow

    decode = functools.partial(image_ops(data).decode_crop, box_of=whole_box)
    figures = measure(
        source,
        open_source(data, 'evaluate'),
        options.limit,
        data.workers or len(os.sched_getaffinity(0)),
        decode,
    )
    figures['empty_classes'] += empty_folders(data, source)
    share = figures['corrupt_share']
    figures['problems'] = problems(figures, options.max_bad_share)
    figures['usable'] = not figures['problems']
    figures['command'] = command(
        data,
        share,
        '--config=configs/pretrain_imagenet1k.py:base --workdir=W',
        '--config.tokenizer.path=TOKENIZER',
    )
    # in1k: the mean and deviation of that pre-training
    figures['finetune_command'] = (
        command(
            data,
            share,
            '--config=configs/finetune_imagenet1k.py:base,in1k --workdir=F --config.init=W',
        )
        if source.class_names
        else None
    )
    print(report(figures, data.path or data.name))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + '\n')
    check(figures['usable'], '\n'.join(figures['problems']))


def _arguments():
    parser = arguments.parser(
        'check_data',
        __doc__,
        'python -m beit_jax.tools.check_data --data.path /imagenet/train --data.evaluate_path '
        '/imagenet/val --json train.json',
    )
    parser.add_argument(
        '--limit',
        type=int,
        default=0,
        metavar='N',
        help='look at N evenly spread examples only (0: all)',
    )
    parser.add_argument(
        '--max_bad_share',
        type=float,
        default=DataConfig.max_bad_share,
        metavar='SHARE',
        help='of corrupt examples, above which the set is not usable (%(default)s)',
    )
    parser.add_argument(
        '--json',
        default='',
        metavar='FILE',
        help='also write the figures, and all names, to this file',
    )
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
