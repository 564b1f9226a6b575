"""What each setting is, as the comment at its field says: for --help and docs/settings.md."""

import ast
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import typing
from typing import Any

COLUMN = 34  # where what is said of a setting begins in `in_words`
WIDTH = 100


@functools.cache
def comments(cls: type) -> dict[str, str]:
    """field -> its comment, of the lines just above it or at its end; '' where there is none."""
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            said = _comments_in(textwrap.dedent(inspect.getsource(base)))
            # of a field with another default, what was said of it before
            found |= {name: text or found.get(name, '') for name, text in said.items()}
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def _comments_in(source: str) -> dict[str, str]:
    above, beside = {}, {}  # line -> comment
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            (above if alone else beside)[token.start[0]] = token.string.lstrip('# ')
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in above:
                first -= 1
            said = [above[line] for line in range(first, node.lineno)]
            said += [
                beside[line] for line in range(node.lineno, node.end_lineno + 1) if line in beside
            ]
            found[node.target.id] = ' '.join(said)
    return found


def groups(cls: type, prefix: str = '') -> Iterator[tuple[str, type]]:
    """('', cls), then (name of the group, its class) of all groups of settings in it."""
    yield prefix, cls
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from groups(kind, f'{prefix}{name}.')


def described(cls: type) -> dict[str, str]:
    """'group.name' -> what it is, of all settings of a class of settings, its own ones first."""
    return {
        prefix + name: comment
        for prefix, group in groups(cls)
        for name, comment in comments(group).items()
        if not dataclasses.is_dataclass(typing.get_type_hints(group)[name])
    }


def in_words(cls: type, values: Mapping[str, Any]) -> str:
    """Paragraphs for a terminal: each setting of `cls`, its value in `values` ('group.name' ->
    value), and what it is."""
    lines, group = [], ''
    for name, comment in described(cls).items():
        if name.rpartition('.')[0] != group:
            group = name.rpartition('.')[0]
            lines.append('')
        start = f'--config.{name}={shown(values[name])}'
        text = textwrap.wrap(comment, WIDTH - COLUMN) if comment else []
        if len(start) < COLUMN - 1 and text:
            start = f'{start:{COLUMN}}{text.pop(0)}'
        lines += [start, *(' ' * COLUMN + line for line in text)]
    return '\n'.join(lines)


def shown(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{tuple(value)}"' if isinstance(value, (tuple, list)) else str(value)
