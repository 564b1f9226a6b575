"""--config of the tools: a recipe, or the config.json of a run, changed by --config.KEY=VALUE."""

import argparse
import json
from pathlib import Path

from beit_jax.errors import RequestError, check
from beit_jax.settings.mapping import task_config
from beit_jax.settings.overrides import override
from beit_jax.tools import arguments


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --config: what `read` reads."""
    parser.add_argument(
        '--config',
        required=True,
        type=arguments.path,
        help="RECIPE.py[:variant] or a run's config.json; change it with --config.KEY=VALUE",
    )


def read(options: argparse.Namespace):
    """The settings of --config, changed by what `arguments.main` found of --config.KEY=VALUE.

    Only a recipe takes ml_collections.

    Raises:
      RequestError: no such file, variant or setting.
    """
    config = _saved(options.config) if options.config.endswith('.json') else _recipe(options.config)
    for argument in options.overrides:
        key, equals, value = argument.removeprefix('--config.').partition('=')
        check(
            argument.startswith('--config.') and bool(equals),
            f'{argument} is not an option: settings are given as --config.KEY=VALUE.',
        )
        override(config, key, value)
    return task_config(config)


def _recipe(text: str):
    from beit_jax.settings.recipes import load_recipe

    path, _, variant = text.partition(':')
    return load_recipe(path, variant)


def _saved(path: str) -> dict:
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise RequestError(
            f'--config={path} is not JSON ({error}): give a recipe or the config.json of a run.'
        ) from error
