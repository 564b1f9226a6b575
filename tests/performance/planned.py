"""`plan` as a user starts it."""

import json
import os
import subprocess
import sys

from tests import tiny


def planned(folder, *words, timeout: float) -> dict:
    """What it finds; `folder`: for a file of its own."""
    # not as other tests have XLA compile for a CPU
    ours = ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')
    done = subprocess.run(
        [sys.executable, '-m', 'beit_jax.tools.plan', *words, f'--json={folder}/plan.json'],
        cwd=tiny.REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in ours},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads((folder / 'plan.json').read_text())
