"""What a work directory tells of its run, as one page: how it stands, what it measured, how it was
set up, and where its time went."""

from collections.abc import Iterable
import datetime
import json
from pathlib import Path
import shlex

from beit_jax.errors import check
from beit_jax.reports import page
from beit_jax.reports.curves import draw, names_of, read_metrics
from beit_jax.settings.overrides import flat
from beit_jax.settings.recipes import recipe
from beit_jax.train.clock import TIMINGS, duration, time_in_steps
from beit_jax.train.workdir.launches import launches
from beit_jax.whole_files import metric_lines, read_json

_PICTURES, _PICTURE_BYTES = 24, 24 << 20  # that are shown, at most
_DRAWN = 'curves'  # the picture of the tool, which the page has itself


def report(workdir: Path) -> str:
    """The page, HTML.

    Raises:
      RequestError: no work directory of a run.
      StorageError: one that cannot be read now.
    """
    check(
        (workdir / 'config.json').is_file(),
        f'--workdir={workdir}: there is no config.json; give the work directory of a run.',
    )
    remedy = 'remove it, and start the run with its config once more'
    config = read_json(workdir / 'config.json', remedy)
    rows, damaged = metric_lines(workdir / 'metrics.jsonl')
    started = launches(workdir)
    return page.page(
        f'{workdir.name}: {config.get("task")}',
        f'<h1>{page.escape(workdir.name)}</h1>',
        page.text(_standing(config, rows, started), soft=True),
        page.tiles(_headline(rows)),
        page.section('Held-out images', *_evaluation(rows)),
        page.section('Curves', *_curves(workdir, damaged)),
        page.section('Pictures', *_pictures(workdir)),
        page.section('Recipe', *_recipe(config, started)),
        page.section('Time', *_time(rows, started)),
        page.section('Machine and versions', *_machine(started)),
    )


def _standing(config: dict, rows: list[dict], started: list[dict]) -> str:
    step, total = max((row['step'] for row in rows), default=0), config.get('total_steps')
    said = [f'{config.get("task")}, ' + ('done' if step == total else 'not done')]
    said.append(f'step {step:,} of {total:,}' if isinstance(total, int) else f'step {step:,}')
    if started:
        said.append(f'first started {_moment(started[0]["time"])}')
    return '; '.join(said)


def _headline(rows: list[dict]) -> dict[str, str]:
    """What a person looks at first, of the newest lines."""
    training = _newest(row for row in rows if not _held_out(row))
    held_out = _newest(filter(_held_out, rows))
    named = ('loss', 'accuracy', 'token_accuracy', 'miou', 'psnr')
    found = {name: training[name] for name in named if name in training}
    found |= {f'held-out {n}': held_out[f'eval/{n}'] for n in named if f'eval/{n}' in held_out}
    found |= {n: training[n] for n in ('images_per_second',) if n in training}
    shown = {name.replace('_', ' '): _number(value) for name, value in found.items()}
    shares = ('utilisation', 'input_wait', 'goodput')
    known = {name: training[name] for name in shares if training.get(name) is not None}
    return shown | {name.replace('_', ' '): f'{value:.1%}' for name, value in known.items()}


def _evaluation(rows: list[dict]) -> list[str]:
    evaluated = list(filter(_held_out, rows))
    if not evaluated:
        return []
    last = evaluated[-1]
    figures = [(n.removeprefix('eval/'), _number(v)) for n, v in last.items() if n != 'step']
    of_layers = [each for each in figures if '/' in each[0]]
    head = 'metric', f'after step {last["step"]:,}'
    return [
        page.table(head, [each for each in figures if each not in of_layers]),
        page.folded(f'{len(of_layers)} more, in parts', page.table(head, of_layers)),
    ]


def _curves(workdir: Path, damaged: list[bytes]) -> list[str]:
    series, drawings = read_metrics(workdir / 'metrics.jsonl'), []
    names = [name for name in names_of(series) if '/' not in name]
    timings = [name for name in names if name in TIMINGS]
    learned = [name for name in names if name not in TIMINGS]
    for chosen, caption in (
        (learned, 'Over the steps; lines: training, dots: held-out images.'),
        (timings, 'Where the time goes: docs/runs.md says what each is.'),
    ):
        if chosen:
            with page.style():
                drawings.append(page.drawing(draw(series, {}, chosen, columns=2), caption))
    if damaged:
        drawings.append(page.text(f'{len(damaged)} damaged lines of metrics.jsonl are left out.'))
    return drawings


def _pictures(workdir: Path) -> list[str]:
    folder, shown, size = workdir / 'images', [], 0
    files = (path for path in sorted(folder.rglob('*')) if path.suffix.lower() in page.MIME)
    files = [path for path in files if path.stem != _DRAWN and path.is_file()]
    for path in files[:_PICTURES]:
        size += path.stat().st_size
        if size <= _PICTURE_BYTES:
            shown.append(page.picture(path, path.relative_to(folder).as_posix()))
    more = len(files) - len(shown)
    return [*shown, page.text(f'{more} more are in {folder}.' * bool(more), soft=True)]


def _recipe(config: dict, started: list[dict]) -> list[str]:
    """Settings that were given first, then those that the recipe changed, folded all others."""
    command = started[-1].get('command', []) if started else []
    words = [word for word in command if isinstance(word, str)]
    given = {word.partition('=')[0].removeprefix('--config.') for word in words}
    settings, usual = flat(config), _defaults(config)
    differing = [n for n, v in settings.items() if n not in usual or usual[n] != v]
    differing.sort(key=lambda name: name not in given)  # stable
    cell = lambda values, name: json.dumps(values[name], ensure_ascii=False)
    usually = lambda name: cell(usual, name) if name in usual else ''
    changed = [
        (name, cell(settings, name), usually(name), 'given' * (name in given)) for name in differing
    ]
    others = [(name, cell(settings, name)) for name in settings if name not in differing]
    return [
        page.code(shlex.join(words)),
        page.table(('setting', 'value', f'default of {config.get("task")}', ''), changed),
        page.folded(
            f'{len(others)} settings as by default', page.table(('setting', 'value'), others)
        ),
    ]


def _defaults(config: dict) -> dict:
    """Of the task, as JSON gives them back, flat."""
    return json.loads(json.dumps(flat(recipe(config.get('task', '')))))


def _time(rows: list[dict], started: list[dict]) -> list[str]:
    if not started:
        return []
    first, last = started[0], max((row['step'] for row in rows), default=0)
    in_steps, _ = time_in_steps(rows, first['step'])
    said = [f'{last - first["step"]:,} steps took {duration(in_steps)}']
    if goodput := _newest(row for row in rows if row.get('goodput')).get('goodput'):
        said.append(f'{duration(in_steps / goodput)} had passed since the first start')
    said.append(f'started {len(started)} times' if len(started) > 1 else 'started once')
    lines = []
    for each in started:
        told = [str(each.get(name, '')) for name in ('host', 'processes', 'devices', 'device')]
        lines.append([_moment(each['time']), f'{each["step"]:,}', *told])
    head = 'started', 'after step', 'host', 'processes', 'devices', 'device'
    return [page.text('; '.join(said) + '.'), page.table(head, lines)]


def _machine(started: list[dict]) -> list[str]:
    """Of the newest start, and what changed since the first one."""
    if not started:
        return []
    now, first = _about(started[-1]), _about(started[0])
    rows = [
        (name, value, f'at first {first.get(name)}' * (first.get(name) != value))
        for name, value in now.items()
    ]
    return [page.table(('', '', ''), rows)]


def _about(launch: dict) -> dict[str, str]:
    about = {'processor': launch.get('machine'), 'cores': launch.get('cores')}
    about |= {'device': launch.get('device'), 'devices': launch.get('devices')}
    about |= launch.get('versions', {})
    return {name: str(value) for name, value in about.items() if value is not None}


def _held_out(row: dict) -> bool:
    return any(name.startswith('eval/') for name in row)


def _newest(rows: Iterable[dict]) -> dict:
    return next(iter(reversed(list(rows))), {})


def _number(value: float | None) -> str:
    return 'not finite' if value is None else f'{value:.5g}'


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
