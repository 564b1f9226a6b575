"""`beit COMMAND`: what it lists, what it refuses, and that it answers without anything heavy."""

import subprocess
import sys

import pytest

import beit_jax
from beit_jax import __main__ as command
from tests import tiny

# what takes a second or more
HEAVY = ('huggingface_hub', 'jax', 'flax', 'orbax', 'scipy', 'matplotlib', 'tensorflow', 'torch')
COMMANDS = [*command.MODES, *command.tools()]
# in a process of its own, for here all is imported
HELP = f"""
import sys
from beit_jax.__main__ import main
sys.argv = sys.argv[1:]
try:
    main()
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""


def beit(monkeypatch, *words):
    monkeypatch.setattr('sys.argv', ['beit', *words])
    command.main()


def test_page(monkeypatch, capsys):
    """Each command in a line that fits a terminal, once, in a group; no word is the same page."""
    beit(monkeypatch, '--help')
    page = capsys.readouterr().out
    rows = [line.split()[0] for line in page.splitlines() if line.startswith('  ')]
    assert sorted(COMMANDS) == sorted(row for row in rows if row != 'beit')
    assert max(map(len, page.splitlines())) < 100 and 'Others' not in page
    beit(monkeypatch)
    assert capsys.readouterr().out == page
    beit(monkeypatch, '--version')
    assert capsys.readouterr().out == f'{beit_jax.__version__}\n'


def test_a_new_tool_is_a_command(monkeypatch, tmp_path, capsys):
    (tmp_path / 'count_pixels.py').write_text(
        '"""How many pixels are there? One or\nmore."""\n\n\ndef _arguments(): ...\n'
    )
    (tmp_path / 'numbers.py').write_text('"""No tool."""\n')
    monkeypatch.setattr(command, 'TOOLS', tmp_path)
    monkeypatch.setattr(command, 'GROUPS', {'Training': ('train', 'evaluate')})
    beit(monkeypatch, '--help')
    assert 'Others\n  count-pixels        How many pixels are there?\n' in capsys.readouterr().out


@pytest.mark.parametrize('name', COMMANDS)
def test_help_imports_nothing_heavy(name):
    done = subprocess.run(
        [sys.executable, '-c', HELP, 'beit', name, '--help'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert heavy == '[]' and lines[0].startswith(f'usage: beit {name} ')
    if name in command.MODES:
        assert '--mode' not in done.stdout and 'main.py' not in done.stdout
    else:
        assert any(f'beit {name} ' in line for line in lines if line.startswith('example: '))


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('trian',), "beit has no command 'trian'. Did you mean train?"),
        (('check_data', '--data.path=x'), 'Did you mean check-data?'),
        (('train', '--mode=evaluate'), 'beit train has no --mode: beit train and beit evaluate'),
        (('predict', '--images=x'), 'the following arguments are required: --checkpoint'),
        (('train', '--workdir=x'), '--config is missing. Example: beit train --config=quickstart/'),
        (('train', '--config', 'quickstart/tokenzer'), 'Did you mean quickstart/tokenizer?'),
        (('train', '--config', 'quickstart/tokenizer', '-config.batch=3'), 'mean batch_size?'),
        (('train', '--config'), 'There are cifar10/finetune, '),
    ],
)
def test_refused(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        beit(monkeypatch, *words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and len(said.splitlines()) == 1


@pytest.mark.once
def test_runs(tmp_path, tokenizer_dir):
    """A run of two steps, its evaluation, its curves: as main.py and the tool."""
    _, *words = tiny.arguments(tmp_path / 'run', tokenizer_dir, total_steps=2, evaluate_every=2)
    for arguments in (
        ('train', *words),
        ('evaluate', *words),
        ('curves', f'--workdir={tmp_path}/run', f'--output={tmp_path}/curves.png'),
    ):
        done = tiny.run(['-m', 'beit_jax', *arguments])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'curves.png').exists()
