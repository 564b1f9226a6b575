"""Commands in order: what is done is not done again."""

import os
import signal
import subprocess
import threading
import time

import pytest

from beit_jax.studies.stages import Stage, run_stages, typed


def stages(folder, *contents) -> list[Stage]:
    """Each adds a line to a file of its own."""
    made = []
    for name, content in zip('abc', contents):
        code = f"open({str(folder / name)!r}, 'a').write('{content} ')"
        made.append(Stage(f'stage {name}', ('-c', code), folder / name))
    return made


def written(folder) -> list[str]:
    return [(folder / name).read_text() for name in 'abc' if (folder / name).exists()]


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    """From the first other command on, or the first whose result is gone, all are done."""
    for contents, expected in (
        ('123', ['1 ', '2 ', '3 ']),
        ('123', ['1 ', '2 ', '3 ']),
        ('143', ['1 ', '2 4 ', '3 3 ']),
        ('143', ['1 ', '2 4 ', '3 3 ']),
    ):
        run_stages(stages(tmp_path, *contents), tmp_path)
        assert written(tmp_path) == expected
    said = capsys.readouterr().out
    assert f'== 1/3 stage a: done before -> {tmp_path}/a' in said
    assert f'== 2/3 stage b -> {tmp_path}/b' in said
    (tmp_path / 'b').unlink()
    run_stages(stages(tmp_path, *'143'), tmp_path)
    assert written(tmp_path) == ['1 ', '4 ', '3 3 3 ']


@pytest.mark.parametrize(
    ('code', 'status'),
    [
        ('import sys; sys.exit(75)', 75),
        ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 137),
    ],
)
def test_a_command_that_fails(code, status, tmp_path):
    """Ends it with its status; those before it stay done."""
    first, _, last = stages(tmp_path, *'123')
    failing = Stage('failing', ('-c', code), tmp_path / 'b')
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            run_stages([first, failing, last], tmp_path)
        assert ended.value.code == status and written(tmp_path) == ['1 ']
    run_stages(stages(tmp_path, *'123'), tmp_path)
    assert written(tmp_path) == ['1 ', '2 ', '3 ']


def test_a_signal_is_for_the_command(tmp_path):
    """SIGTERM reaches it, and how it ends is how all ends."""
    code = (
        'import pathlib, signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); '
        f'pathlib.Path({str(tmp_path / "began")!r}).touch(); time.sleep(60)'
    )

    def end():
        while not (tmp_path / 'began').exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_stages([Stage('long', ('-c', code), tmp_path / 'x')], tmp_path)
    assert ended.value.code == 75 and signal.getsignal(signal.SIGTERM) == before


def test_what_is_printed_can_be_typed():
    said = subprocess.check_output(typed(['-c', 'print("an ü")']), shell=True, text=True)
    assert said == 'an ü\n'
