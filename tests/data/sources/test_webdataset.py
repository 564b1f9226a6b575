"""Tar shards that webdataset wrote: read as webdataset reads them, in any order, and as the folder
of the same pictures; damaged ones are refused."""

import io
import json
import os
import subprocess
import tarfile

import fsspec
import numpy as np
import pytest
import webdataset

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.webdataset import WebDatasetSource, expand
from beit_jax.data.stores import storage, tars
from beit_jax.errors import RequestError
from tests.data import batches

COUNT, SHARD = 23, 7


def sample(i: int, ending: str = 'jpg', **more) -> dict:
    image = bytes(range(i + 1))
    return {'__key__': f'class.d/{i:05}{"x" * i}', ending: image, 'cls': i % 5} | more


def write(folder, samples, name='set-train-%03d.tar'):
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / name), maxcount=SHARD, verbose=0) as writer:
        for each in samples:
            writer.write(each)
    return str(folder)


@pytest.mark.parametrize('ending', ['jpg', 'jpeg', 'png', 'webp', 'tiff'])
def test_agrees_with_webdataset(tmp_path, ending):
    path = write(tmp_path / 'set', (sample(i, ending, json={'kind': i % 3}) for i in range(COUNT)))
    pattern = path + '/set-train-{000..003}.tar'
    expected = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert len(expected) == COUNT
    source = open_source(DataConfig(name='webdataset', path=path), 'train')
    assert len(source) == COUNT and source.class_names == ('0', '1', '2', '3', '4')
    by_json = DataConfig(name='webdataset', path=pattern, label_field='json.kind')
    by_json = open_source(by_json, 'train')
    assert by_json.class_names == ('0', '1', '2')
    for i in np.random.default_rng(0).permutation(COUNT):
        assert source.read(i) == (expected[i][ending], int(expected[i]['cls']))
        assert by_json.label(i) == json.loads(expected[i]['json'])['kind'] == i % 3
        assert source.name(i).endswith(
            f'/set-train-{i // SHARD:03}.tar:{i % SHARD} ({expected[i]["__key__"]}.{ending})'
        )
    assert source.read_many(3, COUNT) == [source.read(i) for i in range(3, COUNT)]


@pytest.mark.parametrize('kind', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_header(tmp_path, kind):
    names = [f'{"d" * 60}/{"e" * 60}/{i}.jpg' for i in range(3)]
    if kind != tarfile.USTAR_FORMAT:
        names += [f'{"x" * 150}/\N{GREEK SMALL LETTER BETA}{i}.jpg' for i in range(3)]
    with tarfile.open(tmp_path / 'a.tar', 'w', format=kind) as tar:
        for i, name in enumerate(names):
            for ending, content in (('jpg', bytes(500 + i)), ('cls', b'%d\n' % i)):
                member = tarfile.TarInfo(name.replace('jpg', ending))
                member.size, member.mtime = len(content), 0.1 * i
                if kind == tarfile.PAX_FORMAT:
                    member.pax_headers = {'comment': 'c' * 600}
                tar.addfile(member, io.BytesIO(content))
    source = WebDatasetSource(str(tmp_path))
    assert [source.read(i) for i in range(len(names))] == [
        (bytes(500 + i), i) for i in range(len(names))
    ]


def test_other_members_are_left_alone(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        folder, link = tarfile.TarInfo('d'), tarfile.TarInfo('d/link.jpg')
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, '0.jpg'
        for member in (folder, link, *map(tarfile.TarInfo, ('d/._0.jpg', 'd/__info__.txt'))):
            tar.addfile(member)
        for ending in ('JPG', 'cls'):
            member = tarfile.TarInfo(f'd/0.{ending}')
            member.size = 1
            tar.addfile(member, io.BytesIO(b'4'))
    source = WebDatasetSource(str(tmp_path))
    assert len(source) == 1 and source.read(0) == (b'4', 4)


def test_the_same_batches_as_from_the_folder(good, tmp_path):
    def samples():
        for i in range(len(good)):
            yield {'__key__': f'{i}', 'jpg': good.read(i).image, 'cls': good.label(i)}

    source = WebDatasetSource(write(tmp_path / 'set', samples()))
    assert source.class_names == good.class_names
    batches.assert_equal(batches.train(source, 3), batches.train(good, 3))


def test_splits(tmp_path):
    path = write(tmp_path / 'set', map(sample, range(COUNT)))
    write(tmp_path / 'set', map(sample, range(5)), 'set-validation-%03d.tar')
    train = WebDatasetSource(path)
    assert len(train) == COUNT
    held_out = DataConfig(name='webdataset', path=path, evaluate_split='val')
    held_out = open_source(held_out, 'evaluate')
    assert len(held_out) == 5 and held_out.class_names == train.class_names
    assert held_out.fingerprint != train.fingerprint == WebDatasetSource(path).fingerprint
    share = open_source(DataConfig(name='webdataset', path=path, holdout=0.2), 'evaluate')
    assert len(share) == 5
    elsewhere = DataConfig(name='webdataset', path=path, evaluate_path=path)
    assert len(open_source(elsewhere, 'evaluate')) == 5
    with pytest.raises(RequestError, match="of the split 'test': it has train, validation"):
        WebDatasetSource(path, 'test')
    unnamed = write(tmp_path / 'plain', map(sample, range(3)), '%05d.tar')
    assert len(WebDatasetSource(unnamed)) == 3


def info(folder, **changed):
    names = sorted(name for name in os.listdir(folder) if name.endswith('.tar'))
    split = {'filenames': names, 'shard_lengths': [7, 7, 7, 2], 'num_samples': COUNT} | changed
    with open(f'{folder}/_info.json', 'w') as file:
        json.dump({'splits': {'fall11': split}}, file)


def test_what_the_info_says(tmp_path):
    path = write(tmp_path / 'set', (sample(i, json={'kind': i % 3}) for i in range(COUNT)))
    info(path, filenames=['set-train-{000..003}.tar'], shard_lengths=[COUNT], alt_label='kind')
    with pytest.raises(RequestError, match=r"split 'train' is not in .*it has fall11"):
        WebDatasetSource(path)
    source = WebDatasetSource(path, 'fall11')
    assert len(source) == COUNT and source.class_names == ('0', '1', '2')
    (tmp_path / 'set' / 'classes.txt').write_text('ant\nbee\ncat\ndog\n')
    assert WebDatasetSource(path, 'fall11').class_names == ('ant', 'bee', 'cat', 'dog')
    (tmp_path / 'set' / 'classes.txt').write_text('ant\nbee\n')
    with pytest.raises(RequestError, match=r'classes.txt.* names 2 classes.*label 2'):
        WebDatasetSource(path, 'fall11')
    info(path, shard_lengths=[7, 7, 8, 2])
    with pytest.raises(RequestError, match=r'set-train-002.tar.* has 7 samples.* says 8'):
        WebDatasetSource(path, 'fall11')
    for damage in ('{', '[]', '{"splits": {"fall11": {"filenames": [1], "shard_lengths": [1]}}}'):
        (tmp_path / 'set' / '_info.json').write_text(damage)
        with pytest.raises(RequestError, match=r'_info.json.* is damaged'):
            WebDatasetSource(path, 'fall11')


@pytest.mark.parametrize(
    ('samples', 'message'),
    [
        ([{'__key__': 'a', 'cls': 1}], "the sample 'a' has 0 images .*among cls"),
        ([{'__key__': 'a', 'jpg': b'', 'png': b'', 'cls': 1}], "'a' has 2 images"),
        ([sample(1), {'__key__': 'a', 'jpg': b''}], "'a' has no 'cls' among jpg"),
        ([{'__key__': 'a', 'jpg': b'', 'cls': b'ant'}], "'a' has no number as 'cls'"),
        ([{'__key__': 'a', 'jpg': b'', 'cls': b'-1'}], "'a' has the label -1"),
        ([{'__key__': 'a', 'jpg': b'', 'JPG': b'', 'cls': 1}], "two members 'a.jpg'"),
    ],
)
def test_bad_samples(tmp_path, samples, message):
    path = write(tmp_path / 'set', samples)
    with pytest.raises(RequestError, match=f'config.data.path: the shard .*{message}'):
        WebDatasetSource(path)


def test_members_with_holes(tmp_path):
    with (tmp_path / '0.jpg').open('wb') as file:
        file.truncate(2**16)
    (tmp_path / '0.cls').write_text('1')
    command = ['tar', '--sparse', '-cf', tmp_path / 'a.tar', '-C', tmp_path, '0.jpg', '0.cls']
    subprocess.run(command, check=True)
    with pytest.raises(RequestError, match=r"'0.jpg' is stored without its zeros"):
        WebDatasetSource(str(tmp_path))


def test_bad_shards(tmp_path):
    path = write(tmp_path / 'set', map(sample, range(COUNT)))
    shard = tmp_path / 'set' / 'set-train-001.tar'
    whole = shard.read_bytes()
    damaged = (
        whole[: 3 * 512],  # after a member, without the block that ends a tar
        whole[:700],
        whole[: 4 * 512] + b'?' + whole[4 * 512 + 1 :],  # a header
        b'',
        b'no tar' * 512,
    )
    for content in damaged:
        shard.write_bytes(content)
        with pytest.raises(RequestError, match=r'set-train-001.tar.* cannot be read'):
            WebDatasetSource(path)
    shard.unlink()
    with pytest.raises(
        RequestError, match="1 of 4 shards are missing, the first is 'set-train-001"
    ):
        WebDatasetSource(f'{path}/set-train-{{000..003}}.tar')
    packed = tmp_path / 'packed'
    packed.mkdir()
    with tarfile.open(packed / 'a.tar.gz', 'w:gz') as tar:
        tar.add(path)
    with pytest.raises(RequestError, match=r'a.tar.gz is compressed.*gunzip'):
        WebDatasetSource(str(packed))
    (packed / 'a.tar.gz').rename(packed / 'a.tar')
    with pytest.raises(RequestError, match=r'a.tar.* is compressed.*gunzip'):
        WebDatasetSource(str(packed))
    with pytest.raises(RequestError, match=r'config.data.path is empty'):
        WebDatasetSource('')
    with pytest.raises(RequestError, match='there is no folder'):
        WebDatasetSource(str(tmp_path / 'nothing'))


def test_a_shard_cut_later_leaves_the_others(tmp_path):
    path = write(tmp_path / 'set', map(sample, range(COUNT)))
    source = WebDatasetSource(path)
    good = [source.read(i) for i in range(COUNT)]
    shard = tmp_path / 'set' / 'set-train-001.tar'
    shard.write_bytes(shard.read_bytes()[: int(source._shards._offsets[9]) + 3])
    many = source.read_many(0, COUNT)
    assert many[:9] == good[:9] and many[14:] == good[14:]
    assert all(isinstance(error, OSError) for error in many[9:14])
    with pytest.raises(OSError, match=r'set-train-001.tar:2.* is cut short'):
        source.read(9)


def test_the_index_is_kept_until_a_shard_changes(tmp_path, monkeypatch):
    path, index = write(tmp_path / 'set', map(sample, range(COUNT))), str(tmp_path / 'index')
    looked, places = [], tars._places
    monkeypatch.setattr(tars, '_places', lambda *of: looked.append(of) or places(*of))
    made = WebDatasetSource(path, index=index)
    opened = WebDatasetSource(path, index=index)
    assert len(looked) == 4
    assert [opened.read(i) for i in range(COUNT)] == [made.read(i) for i in range(COUNT)]
    shard = tmp_path / 'set' / 'set-train-001.tar'
    facts = shard.stat()
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert WebDatasetSource(path, index=index).fingerprint == made.fingerprint
    assert len(looked) == 8


def test_another_store(tmp_path):
    path = write(tmp_path / 'set', map(sample, range(COUNT)))
    remote = fsspec.filesystem('memory')
    remote.put(path, '/tars', recursive=True)
    here, there = WebDatasetSource(path), WebDatasetSource('memory://tars/set-train-{000..003}.tar')
    assert [there.read(i) for i in range(COUNT)] == [here.read(i) for i in range(COUNT)]
    assert there.fingerprint == here.fingerprint and storage.is_remote(there.name(0))
    remote.rm('/tars', recursive=True)


def test_expand():
    assert expand('a-{08..11}.tar') == [f'a-{number}.tar' for number in ('08', '09', '10', '11')]
    assert expand('{0..1}-{00..01}.tar') == ['0-00.tar', '0-01.tar', '1-00.tar', '1-01.tar']
    assert expand('plain.tar') == ['plain.tar']
