"""Work directories in object stores, on fsspec's memory."""

import errno
from pathlib import Path

import fsspec
import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir import lock, mirror
from beit_jax.train.workdir.mirror import Mirror, opened
from tests import tiny
from tests.train.test_resume import assert_same_run

MEMORY = fsspec.filesystem('memory')


class Free:
    """A lock that nobody takes."""

    def check(self):
        pass


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(the address of a store, a function that makes this another machine)."""
    monkeypatch.setattr(mirror, 'STORES', ('memory',))

    def become(name):
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))

    become('one')
    return f'memory://{tmp_path.name}/run', become


def objects(url) -> dict[str, bytes]:
    path = url.removeprefix('memory:/')
    return {name.removeprefix(f'{path}/'): MEMORY.cat_file(name) for name in MEMORY.find(path)}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def checkpoint(step, text='arrays') -> dict[str, str]:
    return {
        f'checkpoints/{step}/state/d/1': text,
        f'checkpoints/{step}/_CHECKPOINT_METADATA': '{}',
        f'checkpoints/{step}/commit_success.txt': 'ok',
    }


def files(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob('*') if path.is_file() and path.name[0] != '.']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_goes_on_elsewhere(machine, uninterrupted, tokenizer_dir, monkeypatch, capfd):
    url, become = machine
    config = task_config(tiny.settings(tokenizer_dir))
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == 2)
    with opened(url) as folder:
        assert loop.train(config, folder) == loop.STOPPED
    monkeypatch.undo()
    monkeypatch.setattr(mirror, 'STORES', ('memory',))
    become('two')
    with opened(url) as elsewhere:
        assert elsewhere != folder and loop.train(config, elsewhere) == 0
    assert 'resumed after step 2' in capfd.readouterr().out
    assert_same_run(elsewhere, uninterrupted)
    there = {name: content for name, content in objects(url).items() if 'tensorboard' not in name}
    assert there == {
        name: content for name, content in files(elsewhere).items() if 'tensorboard' not in name
    } | {'parameters.txt': (folder / 'parameters.txt').read_bytes()}


def test_what_is_copied_and_taken(machine, tmp_path):
    """A checkpoint that is half copied counts for nothing, and goes; caches stay; what another
    machine wrote replaces what is here; what was not copied yet stays, where nobody else wrote."""
    url, _ = machine
    here, there = tmp_path / 'here', tmp_path / 'there'
    lines = {'metrics.jsonl': '1\n', 'config.json': '{}'}
    write(here, lines | checkpoint(3) | {'compiled/a': '', 'tokens/b': '', 'images/c.png': 'c'})
    Mirror(url, here, Free()).push()
    copied = {name: text.encode() for name, text in (lines | checkpoint(3)).items()}
    assert objects(url) == copied | {'images/c.png': b'c'}
    MEMORY.pipe_file(f'{url}/checkpoints/6/state/d/1', b'half')

    def pulled(folder):
        one = Mirror(url, folder, Free())
        one._pull()
        return one

    write(here, checkpoint(6, 'whole'))
    pulled(here).push()
    assert objects(url)['checkpoints/6/state/d/1'] == b'whole', 'what was here went on'
    other = pulled(there)
    assert files(there) == copied | {n: t.encode() for n, t in checkpoint(6, 'whole').items()}
    write(there, checkpoint(9) | {'metrics.jsonl': '1\n2\n'})
    for name in checkpoint(3):
        (there / name).unlink()
    other.push()
    assert not [name for name in objects(url) if name.startswith('checkpoints/3')]
    write(here, checkpoint(7, 'of a run that was overtaken'))
    pulled(here)
    assert files(here) == files(there) | {'compiled/a': b'', 'tokens/b': b''}


def test_the_order_of_a_copy(machine, tmp_path, monkeypatch):
    """Killed anywhere, the store has no checkpoint that is torn, and none without its lines."""
    url, _ = machine
    count, put = [0], MEMORY.put_file

    def killed_after(number, folder):
        def fail(path, own_path, **more):
            count[0] += 1
            if count[0] > number:
                raise OSError(errno.ENOSPC, 'No space left on device')
            put(path, own_path, **more)

        count[0] = 0
        monkeypatch.setattr(MEMORY.__class__, 'put_file', lambda self, *rest: fail(*rest))
        one = Mirror(url, folder, Free())
        with pytest.raises(OSError, match='No space'):
            one.push()
        monkeypatch.undo()

    write(tmp_path / 'run', {'metrics.jsonl': 'lines'} | checkpoint(3) | checkpoint(6))
    for number in range(7):
        MEMORY.rm(url, recursive=True) if MEMORY.exists(url) else None
        killed_after(number, tmp_path / 'run')
        new = tmp_path / f'new{number}'
        Mirror(url, new, Free())._pull()
        wanted = {'metrics.jsonl': 'lines'} if number else {}
        for step, least in ((3, 3), (6, 6)):
            if number >= least:
                left = checkpoint(step)
                wanted |= {
                    name: left[name] for name in left if number > least or left[name] != 'ok'
                }
        assert files(new) == {name: text.encode() for name, text in wanted.items()}, number


def test_one_run_at_a_time(machine, monkeypatch):
    url, become = machine
    monkeypatch.setattr(lock, 'BEAT', 0.05)
    with opened(url):
        become('two')
        monkeypatch.setattr(lock.socket, 'gethostname', lambda: 'elsewhere')
        with pytest.raises(StorageError, match='is in use by process'), opened(url):
            pass
        assert 'run.lock' in objects(url)
    assert 'run.lock' not in objects(url)


@pytest.mark.parametrize(
    ('number', 'start', 'end'),
    [(errno.EACCES, RequestError, StorageError), (errno.ENOSPC, StorageError, StorageError)],
)
def test_a_bucket_that_takes_nothing(number, start, end, machine, monkeypatch):
    """Without rights, or full: at the start, and when the run has begun."""
    url, _ = machine

    def refuse(self, *rest, **more):
        raise OSError(number, 'refused')

    kind = MEMORY.__class__
    with monkeypatch.context() as patch:
        patch.setattr(kind, 'pipe_file', refuse)
        with pytest.raises(start, match=f'--workdir={url} cannot be written: refused'), opened(url):
            pass
    monkeypatch.setattr(kind, 'put_file', refuse)
    words = r'cannot be written \(refused\): what is not there is in'
    with pytest.raises(end, match=words), opened(url) as folder:
        write(folder, {'metrics.jsonl': ''})


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('ftp://b/x', 'give a local path, or one of gs://, s3://'),
        ('gs:/b/x', 'is not local'),
        ('gs://', 'is not gs://BUCKET/FOLDER'),
        ('gs://b//x', 'is not gs://BUCKET/FOLDER'),
        ('s3://b/../x', 'is not s3://BUCKET/FOLDER'),
        ('gs://b/x*', r'has \* in its path'),
        ('', 'is empty'),
    ],
)
def test_no_work_directory(text, words):
    with pytest.raises(RequestError, match=words), opened(text):
        pass


def test_a_local_one_is_itself(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    with opened('~/run') as folder:
        assert folder == Path(tmp_path, 'run') and not folder.exists()
