"""What a run says is not what it does: nobody hears it, and it trains to its end."""

import os
import shlex
import subprocess
import sys

import pytest

from beit_jax.train.workdir.checkpoint import Checkpoints
from tests import tiny
from tests.train.test_resume import metrics_lines


@pytest.mark.once
@pytest.mark.parametrize(
    'streams',
    [
        '<&- >&- 2>&-',
        pytest.param('>&-', marks=pytest.mark.slow),
        '>/dev/full 2>/dev/full',
        '2>&1 | true',
    ],
)
def test_nobody_hears_it(streams, tokenizer_dir, tmp_path):
    command = [sys.executable, *tiny.arguments(tmp_path, tokenizer_dir)]
    result = subprocess.run(
        ['bash', '-c', f'set -o pipefail; {shlex.join(command)} {streams}'],
        cwd=tiny.REPOSITORY,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result
    assert [row['step'] for row in metrics_lines(tmp_path)] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert Checkpoints(tmp_path).steps == [5, 3]
