"""What a work directory holds against what it is asked to go on with: a resumed run must not become
another run unnoticed."""

from collections.abc import Iterable
import contextlib
import dataclasses
import json
from pathlib import Path
import reprlib

import jax

from beit_jax import whole_files
from beit_jax.errors import RequestError, StorageError, check
from beit_jax.models.ways import PARTS
from beit_jax.settings.overrides import flat
from beit_jax.settings.run import RunConfig
from beit_jax.train.workdir.directory import writing

FILE = 'config.json'  # in a work directory
# What may change when a run is resumed, for it changes no result (but for the order of sums).
FREE_SETTINGS = (
    'log_every',
    'save_every',
    'keep_checkpoints',
    'max_skipped_steps',
    'step_timeout',
    'accept_changes',
    'deterministic',
    *(f'model.{part}' for part in PARTS),
    'mesh',
    'profile',
    'tracker',
    'data.path',
    'data.evaluate_path',
    'data.index',
    'data.workers',
    'data.prefetch',
    'data.max_bad_share',
    'tokenizer.path',
    'teacher.path',
    'tokenizer.cache_views',
    'tokenizer.cache_path',
    'pictures',
    'inference.windows',
)


def config_changes(config: RunConfig, workdir: Path) -> list[str]:
    """Refuses a work directory that holds the run of another config, or tells what changes."""
    saved = saved_settings(workdir)
    if saved is None:
        return []
    old, new = settings_then(saved, type(config)), flat(settings_of(config))
    differing = [
        f'config.{name} was {reprlib.repr(old.get(name))}, is {reprlib.repr(new.get(name))}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not is_among(name, FREE_SETTINGS)
    ]
    return refuse_changes(
        config, differing, f'{workdir} holds a run of another config', 'give that config'
    )


def settings_then(saved: dict, kind: type) -> dict:
    """The settings of a run of `kind`, a config class, flat: one that came later was as it is by
    default."""
    return _defaults(kind) | flat(saved)


def saved_settings(workdir: Path) -> dict | None:
    """The settings of the run of a work directory, None where there is none."""
    path = workdir / FILE
    if not path.exists():
        return None
    remedy = 'remove it, and the run goes on with the config that you give'
    return whole_files.read_json(path, remedy)


@contextlib.contextmanager
def known_data(config: RunConfig, workdir: Path):
    """Data that the run of a work directory has been started with, as the block opens them: what is
    refused of them now is a StorageError, for then it was not."""
    try:
        yield
    except RequestError as error:
        saved = saved_settings(workdir)
        if saved is None or saved.get('data') != settings_of(config)['data']:
            raise
        raise StorageError(
            f'{error}\nThe run of {workdir} began with these data: when they are as they were, the '
            'same command goes on.'
        ) from error


def is_among(name: str, settings: Iterable[str]) -> bool:
    """Whether `settings` names a setting, or the group that it is in."""
    return any(name == one or name.startswith(one + '.') for one in settings)


def _defaults(kind: type) -> dict:
    """The settings of a config class that have a default, flat."""
    values = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if default is not dataclasses.MISSING:
            group = dataclasses.is_dataclass(default)
            values[field.name] = dataclasses.asdict(default) if group else default
    return flat(json.loads(json.dumps(values)))


def write_config(config: RunConfig, workdir: Path) -> None:
    """What the next start compares its config with. Written when nothing is left to refuse, so that
    a refused start leaves no trace."""
    if jax.process_index() == 0:
        with writing(workdir):
            whole_files.write(workdir / FILE, settings_of(config), indent=2)


def settings_of(config: RunConfig) -> dict:
    """The config as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def refuse_changes(config: RunConfig, differing: list[str], what: str, remedy: str) -> list[str]:
    """Lines that warn of what differs from the run that is resumed, where config.accept_changes
    allows it."""
    if not differing:
        return []
    named = '; '.join(differing[:4]) + ('; ...' if len(differing) > 4 else '')
    check(
        config.accept_changes,
        f'{what} ({named}): {remedy}, or another --workdir; config.accept_changes=true goes on '
        'with what is new.',
    )
    return [f'WARNING: {what} ({named}): it goes on with what is new']
