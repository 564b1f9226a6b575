"""Weights that a run takes from Hugging Face's hub stay those that it began with, on every host and
at each start: its config keeps the commit that their name stood for."""

import dataclasses
import json
from pathlib import Path

import jax

from beit_jax.settings.overrides import flat
from beit_jax.settings.run import RunConfig
from beit_jax.train.processes.agreement import gathered, together
from beit_jax.train.workdir.changes import saved_settings, settings_of
from beit_jax.weights.hub import Name, commit_of, repository

WEIGHTS = ('init', 'encoder', 'teacher.path', 'tokenizer.path')  # settings that name weights


def pinned(config: RunConfig, workdir: Path) -> RunConfig:
    """The config, with the commit of each name on the hub that it gives: the one that the run of
    the work directory began with, or what host 0 finds now.

    Raises:
      RequestError: the hub has no such model, or does not show it.
      StorageError: the hub cannot be reached now.
    """
    settings = flat(settings_of(config))
    names = {key: repository(settings[key]) for key in WEIGHTS if settings.get(key)}
    names = {key: name for key, name in names.items() if name}
    found = {}
    with together():
        if jax.process_index() == 0:
            saved = flat(saved_settings(workdir) or {})
            found = {key: _at(key, name, saved.get(key, '')) for key, name in names.items()}
    found = json.loads(gathered(json.dumps(found))[0])
    with together():
        for key, name in names.items():
            asked, at = found.get(key, ('', ''))
            # host 0 may have something else, or a folder of that name
            config = _with(config, key, at if asked == str(name) else _at(key, name)[1])
    return config


def _at(key: str, name: Name, saved: str = '') -> tuple[str, str]:
    """(a name, the same at its commit)."""
    began = repository(saved) if saved else None
    if began and began == dataclasses.replace(name, commit=began.commit):
        return str(name), saved
    return str(name), name.at(commit_of(name, f'config.{key}'))


def _with(config, key: str, value: str):
    """The config with another value of a setting."""
    first, _, rest = key.partition('.')
    return dataclasses.replace(
        config, **{first: _with(getattr(config, first), rest, value) if rest else value}
    )
