"""What is said of each setting, by --help and docs/settings.md: every setting has its comment.

`python -m tests.settings.test_descriptions` writes the tables of docs/settings.md.
"""

import dataclasses
from pathlib import Path
import re

import pytest

from beit_jax.settings.descriptions import comments, described, groups, in_words, shown
from beit_jax.settings.mapping import TASKS, config_class
from beit_jax.settings.overrides import flat
from beit_jax.settings.recipes import load_recipe, recipe
from beit_jax.tools import check_data
from tests import tiny

PAGE = Path(__file__).parents[2] / 'docs' / 'settings.md'
HEADING = '## Every setting\n'


def tables() -> str:
    """A table a group of settings: what is alike in several tasks stands there once."""
    rows, defaults = {}, {task: flat(recipe(task)) for task in TASKS}
    for task in TASKS:
        for name, comment in described(config_class(task)).items():
            value = shown(defaults[task][name]).strip('"') or "''"
            rows.setdefault((name, value, comment), []).append(task)
    blocks = {}
    for (name, value, comment), tasks in rows.items():
        of = 'all' if len(tasks) == len(TASKS) else ', '.join(tasks)
        text = comment.replace('|', '\\|')
        row = f'| `config.{name}` | `{value}` | {of} | {text} |\n'
        blocks.setdefault(name.rpartition('.')[0], []).append(row)
    head = '| setting | default | of | what it is |\n|-|-|-|-|\n'
    return '\n'.join(head + ''.join(block) for block in blocks.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inner:
    shade: float = 0.5  # of grey: 'light' # or not


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Base:
    kind: str = 'round'  # round | square
    size: int = 3  # of a side


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config(_Base):
    """Text. # no comment"""

    # a comment of nothing

    # of a side,
    # twice
    sides: tuple[int, int] = (
        1,  # down
        2,
    )
    kind: str = 'square'
    inner: _Inner = _Inner()

    # another of nothing
    @property
    def area(self) -> int:  # no field
        return 3


def test_comments():
    """Above or beside the field, in one or several lines; those of the base where a field has none
    of its own."""
    found = {'kind': 'round | square', 'size': 'of a side', 'inner': ''}
    assert comments(_Config) == found | {'sides': 'of a side, twice down'}
    names = [name for name, _ in groups(_Config)]
    assert names == ['', 'inner.']
    assert described(_Config)['inner.shade'] == "of grey: 'light' # or not"


def test_in_words():
    values = {'kind': 'square', 'size': 5, 'sides': [1, 2], 'inner.shade': 0.5}
    assert in_words(_Config, values).splitlines() == [
        '--config.kind=square              round | square',
        '--config.size=5                   of a side',
        '--config.sides="(1, 2)"           of a side, twice down',
        '',
        "--config.inner.shade=0.5          of grey: 'light' # or not",
    ]


@pytest.mark.parametrize('task', TASKS)
def test_every_setting_is_described(task):
    found = described(config_class(task))
    assert found.keys() == flat(recipe(task)).keys()
    assert not [name for name, comment in found.items() if not comment]


def test_page():
    assert PAGE.read_text().partition(HEADING)[2].strip() == tables().strip(), (
        'python -m tests.settings.test_descriptions writes them'
    )


def test_help_of_a_recipe():
    """Every key, with the value of the recipe and its variant, and status 0."""
    path = 'configs/quickstart/pretrain.py'
    done = tiny.run(['main.py', f'--config={path}:pixels,mask.patches=7', '--help'])
    assert done.returncode == 0 and not done.stderr, done.stderr
    keys = re.findall(r'^--config\.([\w.]+)=', done.stdout, re.MULTILINE)
    assert sorted(keys) == sorted(flat(load_recipe(path)))
    assert '--config.target=pixels  ' in done.stdout and '--config.mask.patches=7  ' in done.stdout
    assert "The quickstart's pre-training" in done.stdout and 'tokens | pixels' in done.stdout


def test_help_without_a_recipe():
    done = tiny.run(['main.py', '--help'])
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert 'Every setting of a recipe: python main.py --config=RECIPE --help' in done.stdout
    done = tiny.run(['main.py', '--config=configs/quickstart/pretrain.py:pixel', '--help'])
    assert done.returncode == 2 and 'Did you mean pixels?' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_of_data():
    said = ' '.join(check_data._arguments().format_help().split())
    assert '--data.exif whether a picture is turned as its EXIF orientation says' in said


if __name__ == '__main__':
    before, heading, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(f'{before}{heading}\n{tables()}')
