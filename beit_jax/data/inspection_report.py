"""What `inspection` found, in words: a report, why training would not run, and the command line
that trains."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
import math
import shlex

from beit_jax.data.config import DataConfig
from beit_jax.data.inspection import SIDE
from beit_jax.errors import shown

WITH_SPLITS = ('tfds', 'webdataset', 'parquet')
SHOWN = 20  # names on the terminal; the JSON has all


def problems(figures: dict, max_bad_share: float) -> list[str]:
    """Why training would not run, a line each."""
    bad, looked = len(figures['corrupt']), figures['examined']
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
    if figures['labels_without_class']:
        found.append(
            f'{figures["labels_without_class"]:,} examples have a label that none of the '
            f'{figures["classes"]} classes has: repair the data set.'
        )
    return found


def command(
    data: DataConfig, names: Sequence[str], corrupt_share: float, start: str, *more: str
) -> str:
    """The command line that trains on this data set.

    Args:
      names: the settings of `data` that it may name.
      start: what comes after main.py.
      more: what ends the line.
    """
    default = DataConfig()
    chosen = {'name': data.name}
    for name in names:
        value = getattr(data, name)
        if value != getattr(default, name):
            chosen[name] = value
    if data.name in WITH_SPLITS:  # recipes expect ImageNet's
        chosen['evaluate_split'] = data.evaluate_split
    if corrupt_share > default.max_bad_share:
        # a percent more: shares vary from step to step
        chosen['max_bad_share'] = min(1.0, math.ceil(100 * corrupt_share + 1) / 100)
    settings = [f'--config.data.{name}={value}' for name, value in chosen.items()]
    return shown(shlex.join(['python', 'main.py', *start.split(), *settings, *more]))


def report(figures: dict, path: str) -> str:
    """The figures in words."""
    classes = f'{figures["classes"]:,} classes' if figures['classes'] else 'no classes'
    lines = [f'{path}: {figures["examples"]:,} examples, {classes}']

    def say(title, text, entries=()):
        lines.append(f'{title:12}{text}')
        lines.extend(_listed(entries))

    if figures['estimated']:
        say(
            'estimated',
            f'only {figures["examined"]:,} evenly spread examples were looked at (--limit): all '
            'below is about them',
        )
    if all_labels := figures['labelled']:
        few, many = (f'{each["examples"]:,} ({each["name"]})' for each in all_labels.values())
        say('labels', f'from {few} to {many} a class, of all {figures["examples"]:,}')
    if figures['classes']:
        few, many = (
            f'{figures[end]["examples"]:,} ({figures[end]["name"]})'
            for end in ('smallest_class', 'largest_class')
        )
        say('classes', f'from {few} to {many} examples')
    if empty := figures['empty_classes']:
        say('', f'{len(empty):,} without a usable image: {_first(empty)}')
    for name in ('formats', 'modes'):
        say(name, ', '.join(f'{key} {count:,}' for key, count in figures[name].items()) or 'none')
    turned = figures['exif_orientations']
    which = ', '.join(f'{orientation}: {count:,}' for orientation, count in turned.items())
    say(
        'exif',
        f'{sum(turned.values()):,} of {figures["examined"]:,} have an orientation other than 1'
        + f' ({which}), which training ignores' * bool(turned),
    )
    if figures['width']:
        for name in ('width', 'height'):
            say(name, '{min:,} to {max:,} pixels, median {median:,.0f}'.format(**figures[name]))
        say('', f'{figures["share_below_224"]:.1%} have a shorter side below {SIDE}')
    if figures['channels']:
        for name, values in figures['channels'].items():
            say(name, ', '.join(f'{value:g}' for value in values))
    mean, megabytes = figures['bytes']['mean'], figures['bytes']['total'] / 1e6
    about = 'about ' if figures['estimated'] else ''
    say('bytes', f'{mean:,.0f} an image, {about}{megabytes:,.1f} MB in all')
    say(
        'speed',
        f'{figures["images_per_second"]:,.0f} images/s, read and decoded in full; '
        f'{figures["seconds"]:,.1f} s',
    )
    corrupt = [f'{entry["name"]}: {entry["reason"]}' for entry in figures['corrupt']]
    say('corrupt', f'{len(corrupt):,} ({figures["corrupt_share"]:.2%})', corrupt)
    by_reason = defaultdict(list)
    for entry in figures['suspicious']:
        by_reason[entry['reason']].append(entry['name'])
    suspicious = [f'{why} ({len(names):,}): {_first(names)}' for why, names in by_reason.items()]
    say('suspicious', f'{len(figures["suspicious"]):,}', suspicious)
    copies = _copies(figures['duplicates'])
    say('duplicates', f'{len(copies):,} have the bytes of an example before them', copies)
    if figures['overlap'] is not None:
        copies = _copies(figures['overlap'])
        say(
            'evaluation',
            f'{len(copies):,} of {figures["evaluate_examined"]:,} held-out images have the bytes '
            'of a training image',
            copies,
        )
    commands = filter(None, (figures['command'], figures['finetune_command']))
    return '\n'.join([*lines, *_of_layout(figures), 'train with', *_listed(commands)])


def _of_layout(figures: dict) -> list[str]:
    """What `layout` found, in words."""
    lines = []
    if figures['left_out']:
        ends = (f'{end or "no ending"} {count:,}' for end, count in figures['left_out'].items())
        lines.append(f'{"not read":12}{", ".join(ends)}')
    if strays := figures['strays']:
        lines.append(
            f'{"strays":12}{len(strays):,} pictures beside the folders, which are no classes '
            f'therefore: {_first(strays)}'
        )
    lines += [f'{"doubtful":12}{doubt}' for doubt in figures['doubts']]
    if found := figures['annotations']:
        values = found['values']
        lines.append(
            f'{"annotations":12}{found["examined"]:,}, {len(values)} values'
            + (f' from {values[0]} to {values[-1]}' if values else '')
            + f'; 0 is {found["share_of_0"]:.1%} and 255 (of no class) {found["share_of_255"]:.1%} '
            'of the pixels'
        )
        for title, missing in (('false', found['missing']), ('true', found['missing_reduced'])):
            lines.append(
                f'{"":12}with config.data.reduce_zero_label={title} no pixel has {len(missing)} of '
                f'{found["classes"]} classes' + (f': {_first(missing)}' if missing else '')
            )
        lines += _listed(found['wrong'])
    return lines


def _copies(entries: list[dict]) -> list[str]:
    return [f'{entry["name"]} = {entry["same_as"]}' for entry in entries]


def _first(names: list[str], shown: int = 3) -> str:
    return ', '.join(names[:shown]) + ', ...' * (len(names) > shown)


def _listed(entries: Iterable[str]) -> list[str]:
    lines = [f'  {entry}' for entry in entries]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f'  and {len(lines) - SHOWN:,} more (--json has all)']
    return lines


def channel_settings(channels: dict | None) -> list[str]:
    """What a command says of pictures that are not RGB of 8 bits: `channels` of `measure`."""
    if not channels:
        return []
    texts = {
        name: '(' + ''.join(f'{value:g},' for value in channels[name]) + ')' for name in channels
    }
    settings = [f'--config.data.{name}={text}' for name, text in texts.items()]
    return [*settings, '--config.data.color_jitter=(0.0,0.0,0.0)']
