"""What the command-line tools do alike: parse, name a data set, run, and turn a bad request into a
line on stderr and status 2."""

import argparse
from collections.abc import Callable, Collection
import dataclasses
import os
import sys
import typing

from beit_jax.data.config import DataConfig
from beit_jax.errors import RequestError, StorageError, check
from beit_jax.runtime import machine_named, print_any_name, set_xla_flags, tell_of_devices
from beit_jax.settings.descriptions import comments
from beit_jax.settings.mapping import from_mapping
from beit_jax.train.processes.exit_status import REFUSED, status_of

# which pictures there are, and how they are cropped
DATA = (
    'name', 'path', 'evaluate_path', 'split', 'evaluate_split', 'holdout', 'label_field',
    'image_field', 'level', 'num_examples', 'num_evaluate_examples', 'crop_scale', 'crop_ratio',
    'flip', 'evaluate_crop', 'index', 'image_ops', 'max_pixels', 'endings', 'exif', 'workers',
    'channels', 'bits', 'bands',
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, as all requests are refused, and not how all is used."""

    def error(self, message: str):
        raise RequestError(f'{message} (--help says what there is).')


def parser(tool: str, description: str, example: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=f'python -m beit_jax.tools.{tool}',
        description=description,
        epilog=f'example: {example}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_data(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds --data.name, ...: settings of `DataConfig`, but those that a tool knows `without`."""
    group = parser.add_argument_group('data', 'config.data of the recipes')
    readers, said = {bool: true_or_false, str: os.path.expanduser}, comments(DataConfig)
    asked = set(DATA) - set(without)
    for field in (each for each in dataclasses.fields(DataConfig) if each.name in asked):
        kind, count = typing.get_type_hints(DataConfig)[field.name], None
        if typing.get_origin(kind) is tuple:
            kind, *others = typing.get_args(kind)
            count = '*' if others[-1:] == [...] else 1 + len(others)
        group.add_argument(
            f'--data.{field.name}',
            nargs=count,
            type=readers.get(kind, kind),
            default=field.default,
            metavar='',
            help=f'{said[field.name]} ({field.default!r})'.replace('%', '%%'),
        )


def data_config(options: argparse.Namespace, **settings) -> DataConfig:
    """The data set that `add_data` read."""
    given = {k.removeprefix('data.'): v for k, v in vars(options).items() if k.startswith('data.')}
    data = from_mapping(DataConfig, given | settings, 'data.')
    check(data.name == 'shapes' or bool(data.path), 'give --data.path, or --data.name shapes.')
    return data


def load(path: str, dtype: str = 'float32'):
    """The `beit_jax.weights.models.Model` of a checkpoint or of a file of weights; says on stderr
    what had to be assumed or changed to read it."""
    # here and not above: tools without a model start without it
    from beit_jax.weights.models import load_model

    model = load_model(path, dtype)
    for note in model.notes:
        print(f'{path}: {note}', file=sys.stderr)
    return model


def path(text: str) -> str:
    """Of an option that names what is read: ~ is the home folder, and '' (a variable of the shell
    that is not set) not the current one."""
    if not text:
        raise argparse.ArgumentTypeError('is empty: give a path')
    return os.path.expanduser(text)


def true_or_false(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError('use true or false')
    return text.lower() == 'true'


def main(run: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser) -> None:
    """Runs a tool on the command line and exits with its status."""
    print_any_name()
    set_xla_flags()
    tell_of_devices()
    try:
        options, overrides = arguments.parse_known_args()
        if overrides and 'config' not in options:
            arguments.error(f'unrecognized arguments: {" ".join(overrides)}')
        options.overrides = overrides
        with machine_named():
            run(options)
    except (RequestError, StorageError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(status_of(error))
    except OSError as error:  # a path of the command line that cannot be read or written
        print(f'error: {error.filename or "a file"}: {error.strerror or error}.', file=sys.stderr)
        sys.exit(status_of(error) or REFUSED)
