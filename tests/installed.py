"""What the wheel without its extra `data` is to its user: the command `beit`, and no TensorFlow."""

import os
from pathlib import Path
import sys

from tests import tiny
from tests.test_without import WITHOUT


def environment(folder: Path) -> dict[str, str]:
    """Variables for processes to find it; it is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'sitecustomize.py').write_text(WITHOUT)
    beit = folder / 'beit'
    beit.write_text(f'#!/bin/sh\nexec {sys.executable} -m beit_jax "$@"\n')
    beit.chmod(0o755)
    return {
        'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
        'PYTHONPATH': f'{tiny.REPOSITORY}{os.pathsep}{folder}',
    }
