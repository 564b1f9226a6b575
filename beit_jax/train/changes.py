"""What a work directory holds against what it is asked to go on with: a resumed run must not become another run unnoticed."""
import dataclasses
import json
from pathlib import Path

import jax

from beit_jax import records
from beit_jax.config import RunConfig, check
from beit_jax.train.metrics import writing

# What may change when a run is resumed, for it changes no result.
FREE_SETTINGS = ('log_every', 'save_every', 'keep_checkpoints', 'max_skipped_steps', 'step_timeout', 'accept_changes', 'mesh', 'profile',
                 'data.path', 'data.evaluate_path', 'data.index', 'data.workers', 'data.prefetch',
                 'tokenizer.path', 'tokenizer.cache_views', 'tokenizer.cache_path')


def claim_workdir(config: RunConfig, workdir: Path) -> list[str]:
    """Writes config.json; refuses a work directory that holds the run of another config, or tells what changes."""
    settings, changes = json.loads(json.dumps(dataclasses.asdict(config))), []
    path = workdir / 'config.json'
    if path.exists():
        old, new = _flatten(json.loads(path.read_text())), _flatten(settings)
        free = lambda name: any(name == prefix or name.startswith(prefix + '.') for prefix in FREE_SETTINGS)
        differing = [f'config.{name} was {old.get(name)!r}, is {new.get(name)!r}' for name in sorted(old.keys() | new.keys())
                     if old.get(name) != new.get(name) and not free(name)]
        changes = refuse_changes(config, differing, f'{workdir} holds a run of another config', 'give that config')
    if jax.process_index() == 0:
        with writing(workdir):
            records.write(path, settings, indent=2)
    return changes


def refuse_changes(config: RunConfig, differing: list[str], what: str, remedy: str) -> list[str]:
    """Lines that warn of what differs from the run that is resumed, where config.accept_changes allows it."""
    if not differing:
        return []
    named = '; '.join(differing[:4]) + ('; ...' if len(differing) > 4 else '')
    check(config.accept_changes, f'{what} ({named}): {remedy}, or another --workdir; config.accept_changes=true goes on with what is new.')
    return [f'WARNING: {what} ({named}): it goes on with what is new']


def _flatten(settings: dict, prefix: str = '') -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat
