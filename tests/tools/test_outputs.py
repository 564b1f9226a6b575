"""What no tool does: write over what it reads, into a folder named gs:, or where it finds at the
end that it cannot."""

import importlib
import os
from pathlib import Path

import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tools import arguments, outputs
from tests import tiny

TOOLS = {
    'attention': ['--checkpoint=C', '--images=D'],
    'benchmark': ['masks'],
    'check_data': ['--data.path=D'],
    'curves': ['--workdir=W'],
    'embed': ['--checkpoint=C', '--images=D', '--format=npy'],
    'evaluate_tokenizer': ['--tokenizer=T', '--data.path=D'],
    'export_weights': ['--input=C', '--format=timm'],
    'fit_tokenizer': ['--kind=random_projection'],
    'import_tokenizer': ['--input', 'encoder.pkl'],
    'import_weights': ['--input=C'],
    'plan': ['--config=configs/pretrain_imagenet1k.py', '--topology=v5e:2x2'],
    'predict': ['--checkpoint=C', '--images=D'],
    'reconstruct': ['--workdir=W', '--images=D'],
    'study': ['--study=configs/studies/quickstart.py', '--workdir=w'],
    'tokenize': ['--tokenizer=T', '--images=D'],
}
WRITING = [
    (tool, option)
    for tool in TOOLS
    for option in ('--output', '--json', '--workdir')
    if f"'{option}'" in (tiny.REPOSITORY / f'beit_jax/tools/{tool}.py').read_text()
    and (tool, option) not in (('curves', '--workdir'), ('reconstruct', '--workdir'))  # are read
]


@pytest.mark.parametrize(('tool', 'option'), WRITING)
@pytest.mark.parametrize('value', ['gs://bucket/name.png', 's3:/bucket/name.png', ''])
def test_only_local_paths(tool, option, value, tmp_path, monkeypatch, capsys):
    """Status 2 and a line, before anything is read that is not there anyway."""
    words = ['gpu'] if (tool, option) == ('benchmark', '--output') else TOOLS[tool]
    given = [word.replace('configs/', f'{tiny.REPOSITORY}/configs/') for word in words]
    module = importlib.import_module(f'beit_jax.tools.{tool}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', [tool, *given, f'{option}={value}'])
    with pytest.raises(SystemExit, match='2'):
        arguments.main(module.run, module._arguments())
    error = capsys.readouterr().err
    words = f'{option}={value} is not local' if value else f'{option} is empty: give a path'
    assert words in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_home(tmp_path, monkeypatch):
    """~ is the home folder for what is written, what is read and for settings."""
    monkeypatch.setenv('HOME', str(tmp_path))
    assert outputs.file('--output', '~/a.png') == tmp_path / 'a.png'
    assert outputs.folder('--output', '~/b') == tmp_path / 'b'
    options = importlib.import_module('beit_jax.tools.predict')._arguments()
    given = options.parse_args(['--checkpoint=~/c', '--images=~/d'])
    assert (given.checkpoint, given.images) == (f'{tmp_path}/c', f'{tmp_path}/d')
    options = importlib.import_module('beit_jax.tools.check_data')._arguments()
    data = arguments.data_config(
        options.parse_args(['--data.name=folder', '--data.path=~/e', '--data.index=~/f'])
    )
    assert (data.path, data.index) == (f'{tmp_path}/e', f'{tmp_path}/f')
    config = task_config(tiny.settings('~/t', init='~/w', data={'path': '~/d'}))
    assert (config.init, config.data.path) == (f'{tmp_path}/w', f'{tmp_path}/d')
    assert config.tokenizer.path == f'{tmp_path}/t'


def test_a_cache_is_local():
    with pytest.raises(RequestError, match=r'cache_path=.* is not local'):
        task_config(tiny.settings('T', tokenizer={'cache_path': 'gs://bucket/cache'}))


@pytest.fixture
def place(tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('in/a.png', 'in/tokenizer.json', 'in/table.csv', 'file'):
        (tmp_path / name).write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('in/a.png', r'is read, as .*/in: it would be written over'),
        ('link/a.png', 'is read, as'),
        ('in/tokenizer.json', 'is read, as'),
        ('file', r'is read, as .*/file'),
        ('in', r'is a folder: give the name of a file in it'),
        ('file/b.png', r'/file is no folder'),
        ('in/table.csv', ''),
        ('in/new.png', ''),
        ('new/folder/b.png', ''),
    ],
)
def test_files(name, words, place):
    inputs = [place / 'in', place / 'file', '', None, place / 'nowhere']
    if not words:
        assert outputs.file('--output', str(place / name), inputs) == place / name
        return
    with pytest.raises(RequestError, match=words):
        outputs.file('--output', str(place / name), inputs)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('in', r'lies in .*/in, which is read: give a folder outside it'),
        ('link', 'lies in'),
        ('in/below', 'lies in'),
        ('file', 'is a file: give a folder'),
        ('file/below', 'is no folder'),
        ('new/below', ''),
        ('', ''),
    ],
)
def test_folders(name, words, place):
    if not words:
        assert outputs.folder('--output', str(place / name), [place / 'in']) == place / name
        return
    with pytest.raises(RequestError, match=words):
        outputs.folder('--output', str(place / name), [place / 'in'])


def test_no_permission(place, monkeypatch):
    """Before the work, not after it."""
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != place)  # root may always
    with pytest.raises(RequestError, match=rf'{place} cannot be written \(permission\)'):
        outputs.file('--output', str(place / 'new' / 'b.png'))
    with pytest.raises(RequestError, match='there already: give another name'):
        outputs.folder('--output', str(place / 'in'), new=True)


def test_endings():
    with pytest.raises(RequestError, match=r'give a file that ends in .png or .jpg'):
        outputs.file('--output', 'picture.tif', endings=outputs.PICTURE)
