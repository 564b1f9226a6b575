"""Chunks are read once an epoch, ahead of time, and give the examples of the plain source."""

import concurrent.futures
import functools
import itertools
import threading
import time

import numpy as np
import pytest

from beit_jax.data.config import DataConfig, View
from beit_jax.data.pipeline import train_batches
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.chunks import ChunkedSource, ReadAhead, chunked
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.source import Example
from tests.data.batches import assert_equal
from tests.photos import write_photos


class Counting:
    """Examples that say their index; every seventeenth cannot be read. Notes the spans read."""

    class_names, fingerprint = ('a', 'b'), 'f'

    def __init__(self, number):
        self.number, self.spans, self.threads = number, [], set()

    def __len__(self):
        return self.number

    def name(self, index):
        return f'example {index}'

    def label(self, index):
        return index % 2

    def read(self, index):
        raise AssertionError('one by one')

    def read_many(self, start, stop):
        self.spans.append((start, stop))
        self.threads.add(threading.get_ident())
        time.sleep(0.001)
        return [
            OSError(f'{i} is bad') if i % 17 == 16 else Example(b'%d' % i, i % 2)
            for i in range(start, stop)
        ]


def read_all(source, sampler, rows, steps):
    """The indices read, as the pipeline does it: steps in order, the rows of one in threads."""
    seen = []
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for step in range(steps):
            indices = sampler.examples(sampler.positions(step, rows))
            for index, example in zip(indices, pool.map(functools.partial(read, source), indices)):
                expected = None if index % 17 == 16 else (b'%d' % index, index % 2)
                assert example == expected
            seen += indices.tolist()
    return seen


def read(source, index):
    try:
        return source.read(int(index))
    except OSError as error:
        assert str(error) == f'{index} is bad'


@pytest.mark.parametrize(
    ('batch_size', 'chunk', 'window', 'lanes'), [(16, 7, 5, 1), (128, 7, 5, 2), (2, 31, 2, 1)]
)
def test_each_chunk_is_read_once_an_epoch(batch_size, chunk, window, lanes):
    number, rows = 1009, np.arange(batch_size)
    counting = Counting(number)
    sampler = Sampler(number, batch_size, seed=3, chunk=chunk, window=window, lanes=lanes)
    source, ahead = chunked(counting, sampler, rows)
    assert len(source) == number and source.name(5) == 'example 5'
    assert source.label(5) == 1 and source.class_names == ('a', 'b')
    steps = number // lanes * lanes // batch_size
    seen = read_all(source, ahead, rows, steps)
    assert seen == sampler.examples(np.arange(steps * batch_size)).tolist()
    source._readers.shutdown()  # all that was begun is read by now
    assert set(counting.spans) == {(i, min(i + chunk, number)) for i in range(0, number, chunk)}
    # read ahead, for the next epoch
    later = sampler.examples(np.arange(steps * batch_size, steps * batch_size + ahead._ahead))
    # lanes share a chunk where one ends
    assert len(counting.spans) <= -(-number // chunk) + len(np.unique(later // chunk)) + lanes - 1
    assert np.mean(np.diff(counting.spans)) > 0.95 * chunk  # the mean run on disk
    assert len(source._kept) <= source._keep and len(counting.threads) > 1


def test_a_host_reads_the_chunks_of_its_lanes_only():
    hosts = []
    for host in range(3):
        counting, sampler = Counting(630), Sampler(630, 30, seed=3, chunk=7, window=5, lanes=3)
        rows = np.arange(10 * host, 10 * host + 10)
        source, ahead = chunked(counting, sampler, rows)
        read_all(source, ahead, rows, 10)
        source._readers.shutdown()
        hosts.append(set(counting.spans))
    assert not hosts[0] & hosts[1] and not hosts[1] & hosts[2] and not hosts[0] & hosts[2]


def test_who_wants_what_is_being_read_waits_for_it():
    counting = Counting(100)
    source = ChunkedSource(counting, 10, keep=2)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(source.read, range(21, 29)))
    assert [example.image for example in examples] == [b'%d' % i for i in range(21, 29)]
    assert counting.spans == [(20, 30)]
    for index in (31, 22, 41, 23, 32):  # of three chunks, the one used longest ago makes room
        source.read(index)
    assert counting.spans == [(20, 30), (30, 40), (40, 50), (30, 40)]


def test_what_comes_later_is_read_before_it_is_needed():
    counting, sampler = Counting(1000), Sampler(1000, 10, seed=3, chunk=10, window=10)
    source, ahead = chunked(counting, sampler, np.arange(10))
    assert isinstance(ahead, ReadAhead)
    for step in range(10):  # a window
        ahead.examples(ahead.positions(step, np.arange(10)))
    source._readers.shutdown()
    later = sampler.examples(sampler.positions(10, np.arange(10)))
    assert {(i // 10 * 10, i // 10 * 10 + 10) for i in later.tolist()} <= set(counting.spans)
    assert ahead.seed == 3 and ahead.views(np.arange(3)).tolist() == [0, 1, 2]


def test_without_chunks_all_stays_as_it_is():
    source, sampler = Counting(10), Sampler(10, 2, seed=0)
    assert chunked(source, sampler, np.arange(2)) == (source, sampler)


def test_batches_are_those_of_the_plain_source(tmp_path):
    """Through the pipeline, with files that others take the place of."""
    write_photos(tmp_path)
    (tmp_path / 'aa.jpg').write_text('not a picture')
    plain, rows = FolderSource(str(tmp_path)), np.arange(3)
    sampler = Sampler(len(plain), 6, seed=3, chunk=3, window=2, lanes=2)

    def train(source, sampler):
        views, config = (View('image', 31),), DataConfig(workers=3)
        return list(itertools.islice(train_batches(source, sampler, views, config, rows), 7))

    singles = train(plain, sampler)
    assert any(batch['substituted'].any() for batch in singles)
    assert_equal(train(*chunked(plain, sampler, rows)), singles)
