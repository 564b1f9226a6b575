"""Which ends of a run are tried again by what starts it: the table of docs/runs.md, a test a row.

What ends with 70, 75 or a signal: test_watchdog.py, test_faults.py."""

import errno
import itertools
import os

import pytest

from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig
from beit_jax.data.sources.folder import FolderSource
from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.train.processes.exit_status import REFUSED, UNSAVED, status_of
from beit_jax.train.run import Run
from beit_jax.train.workdir.changes import write_config
from beit_jax.train.workdir.directory import check_workdir, writing
from tests import tiny
from tests.photos import write_photos

AGAIN = ('ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'ESTALE', 'ETIMEDOUT', 'ENOTCONN', 'EHOSTDOWN')


@pytest.mark.parametrize('name', AGAIN)
def test_storage_that_may_answer_later(name, tmp_path):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    assert status_of(error) == UNSAVED
    with pytest.raises(StorageError, match='cannot be written') as caught, writing(tmp_path):
        raise error
    assert status_of(caught.value) == UNSAVED


@pytest.mark.parametrize('name', ['EACCES', 'EPERM', 'ENOTDIR', 'ENAMETOOLONG', 'EFBIG'])
def test_a_work_directory_that_nobody_can_write(name, tmp_path):
    with pytest.raises(RequestError, match='cannot be written') as caught, writing(tmp_path):
        raise OSError(getattr(errno, name), name)
    assert status_of(caught.value) == REFUSED


def test_a_bug_shows_its_traceback():
    for error in (ValueError('x'), KeyError('x'), FileNotFoundError(errno.ENOENT, 'x')):
        assert status_of(error) is None


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('a\\b', r'has \\ in its path'),
        ('a[1]', r'has \[ in its path'),
        ('a*', r'has \* in its path'),
        ('a\nb', 'has what is not printable'),
        ('a\udcffb', 'has what is not printable'),
        ('x' * 300, 'cannot be used: File name too long'),
        ('file', 'cannot be used: Not a directory'),
        ('circle', 'cannot be used: Too many levels'),
    ],
)
def test_names_of_work_directories(name, message, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'circle').symlink_to('circle')
    with pytest.raises(RequestError, match=message):
        check_workdir(tmp_path / name)
    check_workdir(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


@pytest.fixture
def photos(tmp_path):
    """16 JPEG files."""
    folder = tmp_path / 'photos'
    whole = write_photos(folder / 'whole')[0].read_bytes()
    for number in range(16):
        (folder / f'{number:02}.jpg').write_bytes(whole)
    for path in (folder / 'whole').iterdir():
        path.unlink()
    (folder / 'whole').rmdir()
    return folder


def test_data_that_are_gone_at_a_start(photos, tokenizer_dir, tmp_path):
    """A mistake in the command, unless the run of the work directory has read them there."""
    data = {'name': 'folder', 'path': str(photos)}
    config = task_config(tiny.settings(tokenizer_dir, data=data))
    photos.rename(tmp_path / 'away')
    with pytest.raises(RequestError, match='does not exist'):
        Run(config, tmp_path / 'run')
    write_config(config, tmp_path / 'run')
    with pytest.raises(StorageError, match=r'does not exist.*\n.*the same command goes on'):
        Run(config, tmp_path / 'run')
    photos.mkdir()  # where a file system was mounted
    with pytest.raises(StorageError, match='no image'):
        Run(config, tmp_path / 'run')
    other = task_config(tiny.settings(tokenizer_dir, data=data | {'path': str(photos) + 'x'}))
    with pytest.raises(RequestError, match='does not exist'):
        Run(other, tmp_path / 'run')
    photos.rmdir()
    (tmp_path / 'away').rename(photos)
    assert len(Run(config, tmp_path / 'run').source) == 16


def empty(photos):
    for path in photos.iterdir():
        path.unlink()


def damage(photos):
    for path in photos.iterdir():
        path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(('spoil', 'status'), [(empty, UNSAVED), (damage, REFUSED)])
def test_data_that_go_while_a_run_reads(spoil, status, photos, tmp_path):
    from beit_jax.data.config import View
    from beit_jax.data.sampler import Sampler

    config = DataConfig(name='folder', path=str(photos), workers=1)
    source, views = FolderSource(str(photos)), [View('image', 8)]
    batches = pipeline.train_batches(source, Sampler(16, 4, 0), views, config, [0, 1, 2, 3])
    next(batches)
    assert not pipeline.are_away(source, [], config)
    spoil(photos)
    assert pipeline.are_away(source, range(3), config) == (status == UNSAVED)
    with pytest.raises((RequestError, StorageError)) as caught:
        list(itertools.islice(batches, 20))
    assert status_of(caught.value) == status
