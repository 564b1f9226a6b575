"""From a recipe and a command line to settings: what `configs/*.py` and `main.py` share. The only
user of ml_collections."""

import dataclasses
import os
from pathlib import Path
import runpy
import sys
import types
import typing

from absl import flags
from ml_collections import ConfigDict, FieldReference

from beit_jax.errors import RequestError, check, nearest
from beit_jax.settings.mapping import config_class
from beit_jax.settings.overrides import change, flat, override


def recipe(task: str, **settings) -> ConfigDict:
    """All settings of a task with their defaults, changed by `settings` (nested dicts).

    Raises:
      RequestError: a setting that the task does not have.
    """
    config = ConfigDict(_defaults(config_class(task)))
    change(config, settings)
    return config


def vary(config: ConfigDict, argument: str, variants: dict[str, dict]) -> ConfigDict:
    """Applies what stands behind the colon of --config: names of `variants` and KEY=VALUE settings,
    separated by commas, in order."""
    for part in filter(None, (argument or '').split(',')):
        key, equals, value = part.partition('=')
        if equals:
            override(config, key, value)
        else:
            check(
                part in variants,
                f'this recipe has no variant {part!r}.{nearest(part, variants)} Variants: '
                f'{", ".join(variants)}.',
            )
            change(config, variants[part])
    return config


def load_recipe(path: str, variant: str = '') -> ConfigDict:
    """The settings of a recipe file, with what stands behind the colon of --config.

    Raises:
      RequestError: no such file, variant or setting.
    """
    check(Path(path).is_file(), f'--config={path}: there is no such file. Recipes are in configs/.')
    return runpy.run_path(path)['get_config'](variant)


def parse_flags(argv: list[str]) -> list[str]:
    """The `flags_parser` of `absl.app.run`: a wrong flag ends the program with a line or two on
    stderr and status 2."""
    try:
        # a shell takes ~ for the home folder only where a word begins with it
        argv = [
            f'--config={os.path.expanduser(word[9:])}' if word.startswith('--config=') else word
            for word in argv
        ]
        _check_overrides(argv)
        rest = flags.FLAGS(argv)
        for name in ('config', 'workdir'):
            check(
                flags.FLAGS[name].value is not None,
                f'--{name} is missing. Example: python main.py '
                '--config=configs/quickstart/tokenizer.py --workdir=runs/tokenizer',
            )
        check(
            len(rest) == 1, f'{rest[1:]} is not a flag: settings are given as --config.KEY=VALUE.'
        )
        return rest
    except (RequestError, flags.Error, OSError, TypeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def _check_overrides(argv):
    """Reads the recipe before ml_collections does, which would answer a wrong key or variant with a
    traceback."""
    given = [argument.partition('=')[2] for argument in argv if argument.startswith('--config=')]
    if not given:
        return
    path, _, variant = given[-1].partition(':')
    keys = flat(load_recipe(path, variant))
    for argument in argv:
        key = argument.partition('=')[0].removeprefix('--config.')
        name = key.removeprefix('--')
        check(
            name not in keys or key == name or name in flags.FLAGS,
            f'--{name} is not a flag, but a setting: --config.{name}.',
        )
        check(
            key in keys or not argument.startswith('--config.'),
            f'config.{key} is not a setting of this recipe.{nearest(key, keys)}',
        )


def _defaults(cls) -> dict:
    """Settings of a dataclass and of the groups in it: the defaults of the fields of their
    classes."""
    hints, defaults = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):  # `64` or `64,96`
            defaults[field.name] = FieldReference(field.default, field_type=object)
        else:
            group = dataclasses.is_dataclass(kind)
            defaults[field.name] = _defaults(kind) if group else field.default
    return defaults
