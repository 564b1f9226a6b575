"""From a mapping of settings to frozen dataclasses.

A recipe returns an `ml_collections.ConfigDict`; `from_mapping` turns it into the dataclass of the
task, and every wrong key, type or value is a `RequestError` that names the key and what is allowed,
before anything is allocated.
"""

from collections.abc import Mapping
import dataclasses
import importlib
import os
import reprlib
import types
import typing

from beit_jax.errors import RequestError, check, nearest, one_of
from beit_jax.settings.intervals import USUAL

TASKS = ('pretrain', 'tokenizer', 'vqkd', 'classify', 'probe', 'segment')


def config_class(task: str) -> type:
    """The dataclass of a task's settings: `Config` of its file in beit_jax/tasks, which is found by
    its name.

    Raises:
      RequestError: there is no such task.
    """
    one_of('config.task', task, TASKS)
    return importlib.import_module(f'beit_jax.tasks.{task}').Config


def task_config(settings: Mapping[str, typing.Any]):
    """The checked dataclass for a recipe's mapping; its `task` says which."""
    return from_mapping(config_class(settings.get('task', '')), settings)


def from_mapping(cls: type, settings: Mapping[str, typing.Any], where: str = ''):
    """Builds the dataclass `cls` (nested dataclasses from nested mappings) from `settings`.

    An int is taken for a float field and a list for a tuple field, and a text that begins with ~ is
    a path in the home folder; nothing else is converted. A number is in the interval of its type:
    `Annotated[float, Interval(...)]`, else `USUAL`.

    Raises:
      RequestError: an unknown key (with the nearest one), a missing key, a wrong type, a number
        outside its interval, or a value that `cls` itself refuses.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in settings.items():
        path = f'{where}{key}'
        if key not in fields:
            raise RequestError(
                f'config.{path} is not a setting.{nearest(key, fields)} Settings here: '
                f'{", ".join(fields)}.'
            )
        values[key] = _convert(hints[key], value, path)
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in required:
        check(name in values, f'config.{where}{name} is missing.')
    return cls(**values)


def _convert(kind, value, path):
    if dataclasses.is_dataclass(kind):
        check(
            isinstance(value, Mapping) or hasattr(value, 'items'),
            f'config.{path} is {reprlib.repr(value)}: it is a group of settings.',
        )
        return from_mapping(kind, value, f'{path}.')
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # a number, or several
        if isinstance(value, (list, tuple)) and len(value) == 1:
            (value,) = value
        kind = typing.get_args(kind)[isinstance(value, (list, tuple))]
    kind, *interval = typing.get_args(kind) if hasattr(kind, '__metadata__') else (kind,)
    base = typing.get_origin(kind) or kind
    if base is str and isinstance(value, str):
        return os.path.expanduser(value)
    if base is tuple and isinstance(value, (list, tuple)):
        item_kinds = typing.get_args(kind)
        if item_kinds[-1:] == (...,):
            item_kinds = item_kinds[:1] * len(value)
        check(
            len(item_kinds) == len(value),
            f'config.{path} has {len(value)} items: it takes {len(item_kinds)}.',
        )
        return tuple(
            _convert(k, v, f'{path}[{i}]') for i, (k, v) in enumerate(zip(item_kinds, value))
        )
    taken = (int, float) if base is float else base
    check(
        isinstance(value, taken) and (base is bool or not isinstance(value, bool)),
        f'config.{path} is {reprlib.repr(value)} ({type(value).__name__}): it takes '
        f'{base.__name__}.',
    )
    if base not in USUAL:
        return value
    (interval,) = interval or (USUAL[base],)
    check(
        value in interval,
        f'config.{path} is {reprlib.repr(value)}: it takes a number in {interval}.',
    )
    return base(value)
