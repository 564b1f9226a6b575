"""Cached tokens change nothing but the work: 37 images in batches of 8, views that repeat every 2
epochs, so from step 10 on no tokenizer."""

import contextlib
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.train import batches, loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.workdir.token_cache import TokenCache
from tests import tiny
from tests.train.test_resume import assert_same_run, metrics_lines

STEPS, CACHED_FROM = 15, 10


def config(tokenizer_dir, cache_views=2, **changed):
    tokenizer = {'cache_views': cache_views} | changed.pop('tokenizer', {})
    data = {
        'repeat_views': 2,
        'color_jitter': (0.4, 0.4, 0.4),
        'num_evaluate_examples': 0,
    } | changed.pop('data', {})
    return task_config(
        tiny.settings(tokenizer_dir, total_steps=STEPS, tokenizer=tokenizer, data=data, **changed)
    )


@pytest.fixture(scope='module')
def without(tmp_path_factory, tokenizer_dir):
    """The run whose tokenizer always runs."""
    workdir = tmp_path_factory.mktemp('without')
    assert loop.train(config(tokenizer_dir, cache_views=0), workdir) == 0
    assert not (workdir / 'tokens').exists()
    return workdir


@pytest.fixture
def prepared(monkeypatch):
    """The list that grows by one whenever the tokenizer runs on a training batch."""
    calls, compiled = [], batches.compiled_when_called

    def counting(function, what):
        compute = compiled(function, what)

        def prepare(frozen, batch):
            calls.append(np.asarray(batch['view']))
            return compute(frozen, batch)

        return prepare

    monkeypatch.setattr(batches, 'compiled_when_called', counting)
    return calls


def stopping_after(monkeypatch, number):
    monkeypatch.setattr(Stop, 'asked', lambda self, step: step == number)


def test_same_run_without_the_tokenizer(without, tokenizer_dir, tmp_path, prepared):
    assert loop.train(config(tokenizer_dir), tmp_path) == 0
    assert_same_run(tmp_path, without)
    assert len(prepared) == CACHED_FROM and len(metrics_lines(tmp_path)) == STEPS
    assert sorted(np.concatenate(prepared)[:74]) == list(range(74))  # each view of each image once


def test_views_repeat_when_the_cache_is_on(tokenizer_dir):
    settings = tiny.settings(tokenizer_dir, tokenizer={'cache_views': 3})
    assert task_config(settings).data.repeat_views == 3
    with pytest.raises(
        RequestError, match=r'cache_views is 3 but views repeat every config.data.repeat_views=2'
    ):
        task_config(settings | {'data': settings['data'] | {'repeat_views': 2}})
    with pytest.raises(RequestError, match=r'cache_views is -1'):
        task_config(tiny.settings(tokenizer_dir, tokenizer={'cache_views': -1}))


def test_resume(without, tokenizer_dir, tmp_path, monkeypatch, prepared):
    """Stopped while the cache fills, at the step before it is full, and when it is used."""
    for number in (4, 9, 12):
        stopping_after(monkeypatch, number)
        assert loop.train(config(tokenizer_dir), tmp_path) == loop.STOPPED
    stopping_after(monkeypatch, None)
    assert loop.train(config(tokenizer_dir), tmp_path) == 0
    assert_same_run(tmp_path, without)
    assert len(prepared) == CACHED_FROM


@pytest.mark.slow
def test_lost_or_late_cache(without, tokenizer_dir, tmp_path, monkeypatch, prepared):
    """Switched on at step 4 or lost at step 12: what is not known is computed again, and from the
    next epoch on two epochs long."""
    stopping_after(monkeypatch, 4)
    assert loop.train(config(tokenizer_dir, cache_views=0), tmp_path) == loop.STOPPED
    del prepared[:]
    stopping_after(monkeypatch, 14)
    assert loop.train(config(tokenizer_dir), tmp_path) == loop.STOPPED
    # steps 4 to 13: epoch 0 is known in part, so 1 and 2 are needed: up to position 111
    assert len(prepared) == 10
    shutil.rmtree(tmp_path / 'tokens')
    stopping_after(monkeypatch, None)
    assert loop.train(config(tokenizer_dir), tmp_path) == 0
    assert len(prepared) == 11
    assert_same_run(tmp_path, without)


def test_killed_before_a_flush(without, tokenizer_dir, tmp_path, monkeypatch, prepared):
    """Rows that were in memory only are not trusted: the cache says how far it was written."""

    def die(self, number):
        if number == 8:  # saved and flushed after 3 and 6
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Stop, 'asked', die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(tokenizer_dir), tmp_path)
    ids = np.load(tmp_path / 'tokens' / 'ids-00000.npy', mmap_mode='r+')
    ids[np.unique(np.concatenate(prepared[6:]))] = 9999  # these did not reach the disk
    stopping_after(monkeypatch, None)
    assert loop.train(config(tokenizer_dir), tmp_path) == 0
    assert_same_run(tmp_path, without)


@pytest.mark.once
def test_one_cache_for_many_runs(without, tokenizer_dir, tmp_path, prepared):
    shared = {'tokenizer': {'cache_path': str(tmp_path / 'shared')}}
    assert loop.train(config(tokenizer_dir, **shared), tmp_path / 'first') == 0
    del prepared[:]
    assert loop.train(config(tokenizer_dir, **shared, batch_size=16), tmp_path / 'other') == 0
    assert not prepared
    assert loop.train(config(tokenizer_dir, **shared), tmp_path / 'again') == 0
    assert not prepared
    assert_same_run(tmp_path / 'again', without)


@pytest.mark.once
def test_cache_of_something_else(tokenizer_dir, tmp_path, monkeypatch):
    shared = {'cache_path': str(tmp_path / 'shared')}
    stopping_after(monkeypatch, 1)
    assert loop.train(config(tokenizer_dir, tokenizer=shared), tmp_path / 'first') == loop.STOPPED
    for changed, message in (
        ({'data': {'crop_scale': (0.4, 1.0)}}, r'crop_scale was \[0.5, 1.0\], is \[0.4, 1.0\]'),
        ({'data': {'num_examples': 36}}, 'examples was 37, is 36'),
        ({'seed': 1}, 'seed was 0, is 1'),
        ({'data': {'level': 'hard'}}, 'manifest was'),
        ({'data': {'color_jitter': (0.0, 0.0, 0.0)}}, 'color_jitter was'),
        ({'data': {'exif': True}}, 'exif'),
    ):
        with pytest.raises(
            RequestError,
            match=rf'token cache .*shared is of other data, crops or another tokenizer \({message}',
        ):
            loop.train(config(tokenizer_dir, tokenizer=shared, **changed), tmp_path / 'second')
        shutil.rmtree(tmp_path / 'second')
    for damaged in (
        '{',
        '[]',
        '{"fingerprint": {}}',
        '{"fingerprint": 3, "filled": 1, "since": 0, "complete": true}',
    ):
        (tmp_path / 'shared' / 'ids-00000.json').write_text(damaged)
        with pytest.raises(RequestError, match=r'ids-00000.json is damaged'):
            loop.train(config(tokenizer_dir, tokenizer=shared), tmp_path / 'second')


def cache(directory, position=0, **fingerprint):
    return TokenCache(directory, {'data': 'x'} | fingerprint, 3, 2, 5, position)


def filled(whole, lines=()):
    for view in range(6):
        whole.put(jnp.array([view], jnp.uint32), jnp.full((1, 5), view, jnp.uint16))
    told = whole.flush(max(6, whole.complete_at))
    assert len(told) == len(lines) and all(line in words for line, words in zip(lines, told))


def test_records_of_rows_that_are_gone(tmp_path):
    """The file of a complete cache is lost, and the next start is killed before it writes a row:
    the start after that trusts nothing."""
    filled(cache(tmp_path))
    assert cache(tmp_path, 6).complete_at == 0 and cache(tmp_path).read(np.array([4])).tolist() == [
        [4] * 5
    ]
    (tmp_path / 'ids-00000.npy').unlink()
    assert cache(tmp_path, 6).complete_at == 12  # killed here
    assert cache(tmp_path, 6).complete_at == 12
    with pytest.raises(RequestError, match='data was x, is y'):  # before anything was flushed
        cache(tmp_path, data='y')


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def of_bytes(path):
    np.save(path, np.zeros((6, 5), np.uint8))


DAMAGES = {
    'cut off': cut,
    'short': lambda path: path.write_bytes(b'short'),
    'empty': lambda path: path.write_bytes(b''),
    'gone': lambda path: path.unlink(),
    'an npz': lambda path: path.write_bytes(b'PK\x03\x04' * 99),
    'bytes': of_bytes,
}


@pytest.mark.parametrize('name', ['ids-00000.npy', 'ids-00000.crc.npy'])
@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_not_what_was_written(damage, name, tmp_path, capsys):
    """Its tokens are computed anew, aloud; no row is read as zeros."""
    filled(cache(tmp_path))
    assert cache(tmp_path, 6).complete_at == 0
    damage(tmp_path / name)
    again = cache(tmp_path, 6)
    assert again.complete_at == 12
    assert 'is not what was written' in capsys.readouterr().out
    filled(again)
    assert cache(tmp_path, 12).complete_at == 0
    assert not capsys.readouterr().out


def test_rows_that_are_not_what_was_written(tmp_path):
    """All tokens set to 5, or two rows changed for one another: noticed as they are read; the next
    start computes them anew."""
    for rows in (slice(None), [2, 1]):
        filled(cache(tmp_path, 6))
        ids = np.load(tmp_path / 'ids-00000.npy', mmap_mode='r+')
        ids[[1, 2]] = 5 if rows == slice(None) else ids[rows]
        ids.flush()
        again = cache(tmp_path, 6)
        assert again.read(np.array([0, 3, 4, 5]))[1].tolist() == [3] * 5
        with pytest.raises(StorageError, match='2 of 3 rows, 1 among them'):
            again.read(np.array([0, 1, 2]))
        again.close()
        assert cache(tmp_path, 6).complete_at == 12


def test_a_disk_with_no_room_for_the_tokens(small_disk, capsys):
    """Said at the start, where the place is taken for all; a map would end the process at the
    first row for which there is none."""
    with pytest.raises(StorageError, match=r'tokens cannot be written: No space left on device'):
        TokenCache(small_disk / 'tokens', {}, 3_000_000, 1, 1, 0)
    with pytest.raises(StorageError, match='No space left on device'):
        TokenCache(small_disk / 'tokens', {}, 3_000_000, 1, 1, 0)
    assert not (small_disk / 'tokens/ids-00000.npy').exists(), 'it gives the room back'
    small = cache(small_disk / 'tokens')
    filler = small_disk / 'filler'
    subprocess.run(['dd', 'if=/dev/zero', f'of={filler}', 'bs=1k'], check=False)
    filled(small, lines=['cannot be written (No space left on device)'])
    assert small.read(np.array([4])).tolist() == [[4] * 5]
    filler.unlink()
    with contextlib.closing(cache(small_disk / 'tokens', 6)) as without_record:
        assert without_record.complete_at == 12
    assert small.flush(12) == []
    small.close()
    with contextlib.closing(cache(small_disk / 'tokens', 6)) as whole:
        assert whole.complete_at == 0
