"""The house rules on imports: a folder uses only what stands below it, and heavy packages stay where they belong."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'beit_jax'
FLOORS = ('models', 'images', 'data', 'weights', 'tasks', 'train', 'tools')
FILES = sorted(PACKAGE.rglob('*.py'))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    floor = path.relative_to(PACKAGE).parts[0]
    names = imported(path)
    if floor in FLOORS:
        above = FLOORS[FLOORS.index(floor) + 1:]
        assert not [name for name in names for folder in above if name.startswith(f'beit_jax.{folder}.')]
    packages = {name.split('.')[0] for name in names}
    if floor != 'data':
        assert not packages & {'tensorflow', 'tensorflow_datasets'}
    if not path.name.endswith('benchmark.py'):
        assert not packages & {'torch', 'timm', 'transformers'}
    if floor in ('models', 'images', 'tasks', 'train'):
        assert 'ml_collections' not in packages
    assert len(path.read_text().splitlines()) <= 500
