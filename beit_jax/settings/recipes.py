"""From a recipe and a command line to settings: what `configs/*.py` and `main.py` share. The only
user of ml_collections."""

import dataclasses
import inspect
import os
from pathlib import Path
import runpy
import sys
import types
import typing

from absl import flags
from ml_collections import ConfigDict, FieldReference

from beit_jax.errors import RequestError, check, nearest
from beit_jax.settings.descriptions import in_words
from beit_jax.settings.mapping import config_class
from beit_jax.settings.overrides import change, flat, override

# in the wheel a copy of configs/, in a clone a link to it
RECIPES = Path(__file__).parents[1] / 'configs'


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


def named(option: str, name: str, folder: str = '') -> str:
    """The file of a recipe that is named by its path, or as in configs/ (or a `folder` of it),
    wherever the package is installed: `quickstart/pretrain` or `configs/quickstart/pretrain.py`.

    Raises:
      RequestError: there is neither; names the nearest.
    """
    if Path(name).is_file():
        return name
    there = RECIPES / folder
    found = sorted(there.rglob('*.py'))
    files = {file.relative_to(there).with_suffix('').as_posix(): file for file in found}
    if not folder:
        files = {word: file for word, file in files.items() if not word.startswith('studies/')}
    word = name.removeprefix('configs/').removeprefix(f'{folder}/').removesuffix('.py')
    like = nearest(word, files) or f' There are {", ".join(files)}.'
    check(word in files, f'{option}={name} is no file, and no name of one in configs/.{like}')
    return str(files[word])


def load_recipe(path: str, variant: str = '') -> ConfigDict:
    """The settings of a recipe, as `named` finds it, with what stands behind the colon of --config.

    Raises:
      RequestError: no such recipe, variant or setting.
    """
    return runpy.run_path(named('--config', path))['get_config'](variant)


def describe(path: str, variant: str = '') -> str:
    """Every setting of a recipe file, with its value there and what it is, for a terminal.

    Raises:
      RequestError: as `load_recipe`.
    """
    config = load_recipe(path, variant)
    about = inspect.cleandoc(runpy.run_path(named('--config', path)).get('__doc__') or '')
    return f'{about}\n\n{in_words(config_class(config.task), flat(config))}'.lstrip()


def parse_flags(argv: list[str]) -> list[str]:
    """The `flags_parser` of `absl.app.run`: a wrong flag ends the program with a line or two on
    stderr and status 2."""
    try:
        argv = _in_one_word(argv)
        _check_overrides(argv)
        rest = flags.FLAGS([_with_file(argument) for argument in argv])
        for name in ('config', 'workdir'):
            check(
                flags.FLAGS[name].value is not None,
                f'--{name} is missing. Example: {program(argv)} '
                '--config=quickstart/tokenizer --workdir=runs/tokenizer',
            )
        check(
            len(rest) == 1, f'{rest[1:]} is not a flag: settings are given as --config.KEY=VALUE.'
        )
        return rest
    except (RequestError, flags.Error, OSError, TypeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def program(argv: list[str]) -> str:
    """How a person starts what this command line starts: `beit train`, or `python main.py`."""
    return argv[0] if argv[0].startswith('beit ') else 'python main.py'


def _in_one_word(argv: list[str]) -> list[str]:
    """The command line with `--config=RECIPE` where it has `-config=RECIPE` or `--config RECIPE`,
    which the flags take too; of the recipe ~ is the home folder."""
    found, words = [], iter(argv)
    for given in words:
        word = f'-{given}' if given.startswith('-config') else given
        word = f'{word}={next(words, "")}' if word == '--config' else word
        option, equals, recipe = word.partition('=')
        of_home = option == '--config' and equals
        found.append(f'{option}={os.path.expanduser(recipe)}' if of_home else word)
    return found


def _with_file(argument: str) -> str:
    """The argument; of --config with the file of the recipe, which ml_collections reads."""
    option, equals, value = argument.partition('=')
    if option != '--config' or not equals:
        return argument
    path, colon, variant = value.partition(':')
    return f'{option}={named(option, path)}{colon}{variant}'


def recipe_of(argv: list[str]) -> tuple[str, str] | None:
    """(path, variant) of --config on a command line, or None."""
    words = _in_one_word(argv)
    given = [word.partition('=')[2] for word in words if word.startswith('--config=')]
    if not given:
        return None
    path, _, variant = given[-1].partition(':')
    return path, variant


def _check_overrides(argv):
    """Reads the recipe before ml_collections does, which would answer a wrong key or variant with a
    traceback."""
    if not (given := recipe_of(argv)):
        return
    keys = flat(load_recipe(*given))
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
