"""Commands one after the other, as a person would type them: what is done is not done again."""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import shlex
import shutil
import signal
import subprocess
import sys

from beit_jax import whole_files
from beit_jax.errors import shown

FILE = 'done.txt'  # in a work directory: the commands that are done, in order


@dataclasses.dataclass(frozen=True)
class Stage:
    title: str
    words: tuple[str, ...]  # of a command, after `python`
    leaves: Path  # the file or folder that it makes


def typed(words: Sequence[str]) -> str:
    """A command of this Python, for a terminal in this folder."""
    python = sys.executable
    if shutil.which('python') == python:
        python = 'python'
    elif python.startswith(os.getcwd() + os.sep):
        python = os.path.relpath(python)
    return shlex.join([python, *words])


def run_stages(stages: Sequence[Stage], workdir: Path) -> None:
    """Runs what is not done; from the first that is not, or is another command, all that follow.

    Exits with the status of a command that fails or that a signal stops; the same call goes on
    there.
    """
    file = workdir / FILE
    done = file.read_text().splitlines() if file.exists() else []
    for number, stage in enumerate(stages):
        title = f'{number + 1}/{len(stages)} {stage.title}'
        line = shown(shlex.join(stage.words))
        if done[number : number + 1] == [line] and stage.leaves.exists():
            print(f'== {title}: done before -> {stage.leaves}')
            continue
        print(f'== {title} -> {stage.leaves}\n$ {typed(stage.words)}', flush=True)
        if status := _status(stage.words):
            sys.exit(status)
        done[number:] = [line]
        whole_files.replace(file, ''.join(f'{each}\n' for each in done))


def _status(words: Sequence[str]) -> int:
    """Of a command that is run, as the shell has it. Signals are for it: a run saves, and ends."""
    command = subprocess.Popen([sys.executable, *words])
    # the terminal sends SIGINT to both
    answers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: command.terminate()}
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    status = command.wait()
    for number, answer in before.items():
        signal.signal(number, answer)
    return status if status >= 0 else 128 - status
