"""What the command-line tools do alike: parse, name a data set, run, and turn a bad request into a line on stderr and status 2."""
import argparse
from collections.abc import Callable
import dataclasses
import sys
import typing

from beit_jax.config import check, from_mapping
from beit_jax.data.config import DataConfig
from beit_jax.errors import RequestError

# which pictures there are, and how they are cropped
DATA = ('name', 'path', 'evaluate_path', 'split', 'evaluate_split', 'holdout', 'level', 'num_examples', 'num_evaluate_examples', 'crop_scale',
        'crop_ratio', 'flip', 'evaluate_crop', 'workers')


def parser(tool: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f'python -m beit_jax.tools.{tool}', description=description, epilog=f'example: {example}',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds --data.name, --data.path, ...: the settings of `DataConfig` under the names that recipes have."""
    group = parser.add_argument_group('data', 'config.data of the recipes')
    kinds = typing.get_type_hints(DataConfig)
    for field in dataclasses.fields(DataConfig):
        if field.name in DATA:
            kind = {tuple[float, float]: float, bool: lambda text: text.lower() == 'true'}.get(kinds[field.name], kinds[field.name])
            pair = {'nargs': 2} if isinstance(field.default, tuple) else {}
            group.add_argument(f'--data.{field.name}', type=kind, default=field.default, metavar='', help=f'({field.default!r})', **pair)


def data_config(options: argparse.Namespace, **settings) -> DataConfig:
    """The data set that `add_data` read."""
    data = from_mapping(DataConfig, {name: getattr(options, f'data.{name}') for name in DATA} | settings, 'data.')
    check(data.name == 'shapes' or bool(data.path), 'give --data.path, or --data.name shapes for the built-in pictures.')
    return data


def main(run: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser) -> None:
    """Runs a tool on the command line and exits with its status."""
    try:
        run(arguments.parse_args())
    except RequestError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
