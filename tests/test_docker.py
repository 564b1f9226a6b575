"""docker/*.Dockerfile, as far as is known without docker: extras, the program and the commands in
them are there, and nothing runs as root. `python -m tests.test_docker FILE FOLDER` prints the steps
of a file as a script for a machine without docker: in a fresh environment below FOLDER."""

import json
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from tests import tiny

FILES = sorted((tiny.REPOSITORY / 'docker').glob('*.Dockerfile'))
PROJECT = tomllib.loads((tiny.REPOSITORY / 'pyproject.toml').read_text())['project']


def instructions(file: Path) -> list[tuple[str, str]]:
    """(its name, the rest) of each."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith('#')]
    return [
        tuple(line.split(maxsplit=1)) for line in '\n'.join(lines).replace('\\\n', '').split('\n')
    ]


def script(file: Path, folder: str) -> str:
    """The steps for bash, in a clone; the last line is what the container does by itself. A file
    system and a user of its own it has not."""
    given = dict(instructions(file))
    python = re.fullmatch(r'python:([\d.]+)-slim', given['FROM'])[1]
    lines = [f'set -e; python{python} -m venv {folder}/env', f'PATH={folder}/env/bin:$PATH']
    for name, rest in instructions(file):
        if name == 'COPY':
            source, target = rest.split()
            lines.append(f'mkdir -p {folder}{target} && cp {source} {folder}{target}')
        elif name == 'RUN' and 'useradd' not in rest:
            lines.append(rest.replace('/wheel/', f'{folder}/wheel/'))
        elif name == 'ENV':
            lines.append(f'export {rest.replace("=/", f"={folder}/")}')
    return '\n'.join(
        [*lines, shlex.join(json.loads(given['ENTRYPOINT']) + json.loads(given['CMD']))]
    )


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_dockerfile(file):
    steps = instructions(file)
    names = [name for name, _ in steps]
    given = dict(steps)
    python = re.fullmatch(r'python:(3\.\d+)-slim', given['FROM'])[1]
    oldest = PROJECT['requires-python'].removeprefix('>=')
    assert [int(part) for part in python.split('.')] >= [int(part) for part in oldest.split('.')]
    (extras,) = re.findall(r'\*\.whl\)\[(.*?)\]', file.read_text())
    assert set(extras.split(',')) == {{'gpu': 'cuda', 'tpu': 'tpu'}[file.stem], 'data'}
    assert set(extras.split(',')) <= set(PROJECT['optional-dependencies'])
    assert given['COPY'].split()[0] == f'dist/{PROJECT["name"]}-*.whl'
    (program,) = json.loads(given['ENTRYPOINT'])
    assert program in PROJECT['scripts'] and json.loads(given['CMD']) == ['--help']
    # not root, in a folder that is its own
    assert names.index('USER') > max(i for i, name in enumerate(names) if name == 'RUN')
    assert f'useradd --create-home --uid=1000 {given["USER"]} ' in file.read_text()
    assert f'install --directory --owner={given["USER"]} {given["VOLUME"]}' in file.read_text()
    assert given['ENV'].startswith(f'XDG_CACHE_HOME={given["VOLUME"]}/')


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_steps_without_docker(file, tmp_path):
    """The script, with a `python` that only notes what it is asked for."""
    (tmp_path / 'bin').mkdir()
    for name in ('python3.13', 'pip', 'beit'):
        program = tmp_path / 'bin' / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/noted\n')
        program.chmod(0o755)
    (tmp_path / 'dist').mkdir()
    (tmp_path / 'dist' / 'beit_jax-0.1.0-py3-none-any.whl').touch()
    environment = os.environ | {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
    text = script(file, f'{tmp_path}/made')
    subprocess.run(['bash', '-c', text], cwd=tmp_path, env=environment, check=True)
    made, pip, beit = (tmp_path / 'noted').read_text().splitlines()
    assert made == f'python3.13 -m venv {tmp_path}/made/env' and beit == 'beit --help'
    assert f'{tmp_path}/made/wheel/beit_jax-0.1.0-py3-none-any.whl[' in pip


if __name__ == '__main__':
    print(script(Path(sys.argv[1]), sys.argv[2]))
