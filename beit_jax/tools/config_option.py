"""--config of the tools: a recipe, or the config.json of a run, changed by --config.KEY=VALUE."""

import argparse
from pathlib import Path

from beit_jax.errors import check
from beit_jax.settings.mapping import task_config
from beit_jax.settings.overrides import flat, override
from beit_jax.tools import arguments
from beit_jax.whole_files import read_json


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --config: what `read` reads."""
    parser.add_argument(
        '--config',
        required=True,
        type=arguments.path,
        help="RECIPE.py[:variant] or a run's config.json; change it with --config.KEY=VALUE "
        '(main.py --config=RECIPE --help lists what there is)',
    )


def read(options: argparse.Namespace):
    """The settings of --config, changed by what `arguments.main` found of --config.KEY=VALUE.

    Only a recipe takes ml_collections.

    Raises:
      RequestError: no such file, variant or setting.
    """
    config = _config(options.config)
    for argument in options.overrides:
        key, equals, value = argument.removeprefix('--config.').partition('=')
        setting = key.removeprefix('--')
        known = f'--config.{setting}={value}' if setting in flat(config) else '--config.KEY=VALUE'
        check(
            argument.startswith('--config.') and bool(equals),
            f'{argument} is not an option: settings are given as {known}.',
        )
        override(config, key, value)
    return task_config(config)


def _config(text: str):
    if text.endswith('.json'):
        return read_json(Path(text), 'give a recipe or the config.json of a run')
    from beit_jax.settings.recipes import load_recipe

    path, _, variant = text.partition(':')
    return load_recipe(path, variant)
