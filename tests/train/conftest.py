import subprocess

import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from tests import tiny


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, tokenizer_dir):
    """The work directory of a tiny run that nobody stopped."""
    workdir = tmp_path_factory.mktemp('uninterrupted')
    assert loop.train(task_config(tiny.settings(tokenizer_dir)), workdir) == 0
    return workdir


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip('mounting a file system takes rights that this process does not have')
    yield disk
    subprocess.run(['umount', disk], check=True)
