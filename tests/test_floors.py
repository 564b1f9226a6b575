"""The rules of the house (docs/architecture.md): a room imports only what stands below it, no two
files import each other, heavy packages stay where they belong, and files stay short.

`python -m tests.test_floors` prints the drawing.
"""

import ast
from collections import Counter, defaultdict
import functools
import graphlib
from pathlib import Path
import textwrap

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / 'beit_jax'
# From the ground up. What is a file in one row and lies in a folder of another belongs to the
# first.
ROOMS = (
    'errors',
    'machines',
    'remote',
    'runtime',
    'whole_files',
    'settings',
    'data/config',
    'data/sampler',
    'data/stores',
    'data/pictures',
    'data/sources',
    'data',
    'models',
    'images',
    'weights',
    'tasks',
    'train/processes',
    'train/workdir',
    'train',
    'inference',
    'performance',
    'studies',
    'reports',
    'tools',
    'main',
    '__main__',
)
FILES = sorted(PACKAGE.rglob('*.py'))
MOST_LINES, MOST_LINES_OF_A_TOOL = 350, 120


def room_of(file: Path) -> str:
    """'' for what is in no room."""
    if not file.is_relative_to(PACKAGE):
        return ''
    name = file.relative_to(PACKAGE).with_suffix('').as_posix()
    return max(
        (room for room in ROOMS if name == room or name.startswith(room + '/')), key=len, default=''
    )


@functools.cache
def imported(file: Path) -> frozenset[str]:
    """Full names of what is imported, anywhere in the file: modules, or names in them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return frozenset(names)


@functools.cache
def used(file: Path) -> frozenset[Path]:
    """The files of the package that a file imports. The package itself, which has the version, is
    none of them."""
    found = set()
    for name in imported(file):
        path = REPOSITORY.joinpath(*name.split('.'))
        candidates = [
            path.with_suffix('.py'),
            path / '__init__.py',
            path.parent.with_suffix('.py'),
            path.parent / '__init__.py',
        ]
        found |= set([candidate for candidate in candidates if candidate.is_file()][:1])
    return frozenset(found - {PACKAGE / '__init__.py', file})


def drawing() -> str:
    """A paragraph a room, from the top: how many files it has, and the rooms that they import."""
    below, files = defaultdict(set), Counter(map(room_of, FILES))
    for file in FILES:
        below[room_of(file)] |= {room_of(other) for other in used(file)} - {room_of(file)}
    paragraphs = []
    for room in reversed(ROOMS):
        found = ', '.join(sorted(below[room], key=ROOMS.index, reverse=True)) or 'nothing'
        start = f'{room:15} {files[room]:3} files -> '
        paragraphs.append(textwrap.fill(start + found, 90, subsequent_indent=' ' * len(start)))
    return '\n'.join(paragraphs)


def test_drawing():
    """The drawing that people read is that of the code."""
    print(drawing())
    assert drawing() in (REPOSITORY / 'docs' / 'architecture.md').read_text(), (
        'python -m tests.test_floors prints the new one'
    )


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_arrow_upwards(file):
    room = room_of(file)
    if file == PACKAGE / '__init__.py':  # the door, from which `load` leads to weights
        return
    assert room, f'{file} is in no room'
    higher = ROOMS[ROOMS.index(room) + 1 :]
    assert not [str(other) for other in used(file) if room_of(other) in higher]


def test_no_circle_between_files():
    # raises CycleError
    tuple(graphlib.TopologicalSorter({file: used(file) for file in FILES}).static_order())


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages(file):
    room, packages = room_of(file), {name.split('.')[0] for name in imported(file)}
    if file.name not in ('tf_data.py', 'decode_tensorflow.py'):
        assert 'tensorflow' not in packages
    if file.name != 'tfrecords.py':
        assert 'tensorflow_datasets' not in packages
    if not file.name.endswith('benchmark.py'):
        assert not packages & {'torch', 'timm', 'transformers'}
    if room not in ('settings', 'main'):
        assert 'ml_collections' not in packages


@pytest.mark.parametrize(
    'file',
    [*FILES, *sorted((REPOSITORY / 'tests').rglob('*.py'))],
    ids=lambda file: str(file.relative_to(REPOSITORY)),
)
def test_length(file):
    most = MOST_LINES_OF_A_TOOL if room_of(file) == 'tools' else MOST_LINES
    assert len(file.read_text().splitlines()) <= most


if __name__ == '__main__':
    print(drawing())
