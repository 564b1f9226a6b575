"""When a run was started, where, and with which versions: `launches.jsonl`, a line a start."""

from importlib.metadata import version
import json
import os
from pathlib import Path
import platform
import socket
import sys
import time

import jax

import beit_jax
from beit_jax.machines.processor import machine
from beit_jax.train.workdir.directory import writing
from beit_jax.whole_files import json_object, lines_of, replace

FILE = 'launches.jsonl'  # in a work directory
_LATEST = 1e11  # seconds: a year that calendars have
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def versions() -> dict[str, str]:
    """Of the packages that decide what is computed."""
    return {name: version(name) for name in _PACKAGES}


def record(workdir: Path, step: int, mesh) -> None:
    """Notes that a run goes on after `step`, on a mesh.

    Raises:
      RequestError, StorageError: the work directory cannot be written.
    """
    path, devices = workdir / FILE, mesh.devices
    launch = {
        'time': round(time.time(), 3),
        'step': step,
        # names may be no UTF-8
        'command': [os.fsencode(word).decode(errors='backslashreplace') for word in sys.argv],
        'host': socket.gethostname(),
        'processes': jax.process_count(),
        'devices': devices.size,
        'device': devices.flat[0].device_kind,
        'machine': machine(),
        'cores': os.cpu_count(),
        'versions': {'beit_jax': beit_jax.__version__, 'python': platform.python_version()}
        | versions(),
    }
    with writing(workdir):
        before = path.read_bytes() if path.is_file() else b''
        torn = b'' if before[-1:] in (b'', b'\n') else b'\n'
        replace(path, before + torn + json.dumps(launch).encode() + b'\n')


def launches(workdir: Path) -> list[dict]:
    """Those of a run, the first one first, without lines that are damaged; [] of a run that has
    none.

    Raises:
      StorageError: the file cannot be read now.
    """
    return lines_of(workdir / FILE, _launch)[0]


def _launch(line: bytes) -> dict:
    launch = json_object(line)
    step, seconds = launch.get('step'), launch.get('time')
    numbers = type(step) is int and type(seconds) in (int, float) and 0 <= seconds < _LATEST
    kinds = {'command': list, 'versions': dict}
    if not numbers or not all(isinstance(launch.get(n, kind()), kind) for n, kind in kinds.items()):
        raise ValueError('no launch')
    return launch
