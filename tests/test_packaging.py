"""What the wheel takes and holds is what the clone has; recipes are found by name."""

from pathlib import Path
import re
import tomllib

import pytest

from beit_jax.errors import RequestError
from beit_jax.settings import recipes
from beit_jax.settings.recipes import load_recipe, named
from tests import tiny

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def lines(*names: str) -> set[str]:
    """Requirements of files, without comments and other files; quotes as in pyproject.toml."""
    text = '\n'.join((ROOT / f'requirements{name}.txt').read_text() for name in names)
    found = (line.partition('  #')[0].strip() for line in text.splitlines())
    return {line.replace('"', "'") for line in found if line and not line.startswith(('#', '-r'))}


def test_extras_are_those_of_the_requirements():
    extras = {
        name: set(given) for name, given in PROJECT['project']['optional-dependencies'].items()
    }
    assert extras['test'] == lines('-test')
    assert extras['data'] == lines('-no-tensorflow', '-tensorflow')
    assert extras['hub'] <= extras['test']
    files = PROJECT['tool']['setuptools']['dynamic']['dependencies']['file']
    assert files == ['requirements-library.txt']
    names = {re.split(r'\W', line.replace('-', '_'))[0] for line in lines('-library')}
    assert not names & {'pytest', 'chex', 'tensorflow', 'tensorflow_cpu', 'tensorflow_datasets'}


def test_a_name_is_a_file(monkeypatch, tmp_path):
    """Outside a clone too, as in configs/; a file of that path comes first."""
    monkeypatch.chdir(tmp_path)
    there = ROOT / 'configs'
    for name, file in {
        'pretrain_imagenet1k': 'pretrain_imagenet1k.py',
        'quickstart/probe': 'quickstart/probe.py',
        'configs/quickstart/probe.py': 'quickstart/probe.py',
    }.items():
        assert Path(named('--config', name)).samefile(there / file)
    assert Path(named('--study', 'table4', 'studies')).samefile(there / 'studies' / 'table4.py')
    assert load_recipe('quickstart/pretrain', 'pixels').target == 'pixels'
    (tmp_path / 'mine.py').write_text('')
    assert named('--config', 'mine.py') == 'mine.py'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('pretrain_imagnet1k', 'configs/. Did you mean pretrain_imagenet1k?'),
        ('configs/quickstart/pretain.py', 'Did you mean quickstart/pretrain?'),
        ('', 'There are cifar10/finetune, '),
        ('studies/table4', 'no name of one in configs/.'),
        ('mine.py', '--config=mine.py is no file, '),
    ],
)
def test_no_such_name(name, message):
    with pytest.raises(RequestError, match=re.escape(message)) as error:
        named('--config', name)
    assert len(str(error.value).splitlines()) == 1


def test_by_name(tmp_path, tokenizer_dir):
    """The same run by the recipe's name, with another program; a wrong name is status 2."""
    _, config, *words = tiny.arguments(tmp_path / 'run', tokenizer_dir, total_steps=2)
    assert config == '--config=configs/quickstart/pretrain.py'
    done = tiny.run(['-m', 'beit_jax', 'train', '--config=quickstart/pretrain', *words])
    assert done.returncode == 0, done.stderr
    done = tiny.run(['main.py', '--config=quickstart/pretain:x', *words])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert 'Did you mean quickstart/pretrain?' in done.stderr


def test_recipes_lie_in_the_package():
    """Which is what the wheel holds: a link in a clone, so that there is one copy."""
    assert recipes.RECIPES.is_symlink() and recipes.RECIPES.resolve() == ROOT / 'configs'
