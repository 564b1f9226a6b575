"""embed: its rows against the model's own, that what is stopped anywhere goes on to the same bytes,
shards, and what it refuses."""

import csv
import os
import signal
import time

import numpy as np
import pyarrow.dataset
import pytest

import beit_jax
from beit_jax import whole_files
from beit_jax.errors import RequestError, StorageError
from beit_jax.inference import embedding, parts, pictures
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import embed
from tests import tiny
from tests.photos import write_photos
from tests.tools.call import call

SHAPES_37 = ('--data.name=shapes', '--data.num_examples=37')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """An encoder of 20 x 20 pixels, 2 blocks, width 16."""
    workdir = tmp_path_factory.mktemp('run')
    settings = tiny.classify_settings(data={'evaluate_crop': 0.8})
    tiny.save_checkpoint(workdir, make_task(task_config(settings)))
    return workdir


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Eight of two classes."""
    folder = tmp_path_factory.mktemp('photos')
    for number, path in enumerate(write_photos(folder / 'all')):
        (folder / 'b' / f'{number % 2}').mkdir(parents=True, exist_ok=True)
        path.rename(folder / 'b' / f'{number % 2}' / f'{number}, "x"{path.suffix}')
    return folder / 'b'


@pytest.fixture(scope='module')
def whole(checkpoint, tmp_path_factory):
    """37 shapes in parts of 11, batches of 8: npy and parquet."""
    folder = tmp_path_factory.mktemp('whole')
    for form in parts.FORMATS:
        call(embed, *given(checkpoint, folder / form, form))
    return folder


def given(checkpoint, output, form='npy', *words):
    """The command of `whole`."""
    options = {'checkpoint': checkpoint, 'output': output, 'format': form, 'rows': 11, 'batch': 8}
    return [*SHAPES_37, *(f'--{name}={value}' for name, value in options.items()), *words]


def files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob('*')
        if path.is_file()
    }


def lines(folder):
    with (folder / 'rows.csv').open(newline='') as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(('pool', 'stored'), [('mean', 'float32'), ('cls', 'float16')])
def test_as_the_model(pool, stored, checkpoint, photos, tmp_path):
    """Of an array, and of a folder of photographs, whose pixels training resizes otherwise than
    Pillow (by 0.1 of 255 in the mean); the names and labels of a folder."""
    more = {'images': photos, 'layer': -2, 'pool': pool, 'stored': stored, 'rows': 3}
    call(embed, checkpoint=checkpoint, output=tmp_path / 'e', format='npy', **more)
    rows = np.load(tmp_path / 'e' / 'embeddings.npy', mmap_mode='r')
    assert (rows.dtype, rows.shape) == (stored, (8, 16))
    model, paths = beit_jax.load(str(checkpoint)), sorted(map(str, photos.rglob('*.*')))
    expected = model.features(model.preprocess(paths), [1])[pool][0]
    np.testing.assert_allclose(rows, expected, atol=5e-3)
    wanted = [[path, '01'[i >= 4]] for i, path in enumerate(paths)]
    assert lines(tmp_path / 'e') == [['name', 'label'], *wanted]
    assert sorted(os.listdir(tmp_path / 'e')) == ['_embeddings.json', 'embeddings.npy', 'rows.csv']
    np.save(tmp_path / 'some.npy', model.preprocess(paths))
    more['images'] = tmp_path / 'some.npy'
    call(embed, checkpoint=checkpoint, output=tmp_path / 'a', format='npy', **more)
    rows = np.load(tmp_path / 'a' / 'embeddings.npy')
    np.testing.assert_allclose(rows, expected, atol=1e-5 if stored == 'float32' else 1e-3)
    assert lines(tmp_path / 'a')[8] == ['some.npy[7]', '0']


def test_parquet(whole):
    """The folder is a data set for pyarrow, with what the .npy has."""
    table = pyarrow.dataset.dataset(whole / 'parquet').to_table().sort_by('row')
    rows = np.load(whole / 'npy' / 'embeddings.npy')
    assert rows.shape == (37, 16) and len(list((whole / 'parquet').glob('part-*-of-00004.*'))) == 4
    embeddings = table['embedding'].combine_chunks()
    np.testing.assert_array_equal(embeddings.flatten().to_numpy().reshape(37, 16), rows)
    written = list(zip(table['name'].to_pylist(), map(str, table['label'].to_pylist())))
    assert [tuple(line) for line in lines(whole / 'npy')[1:]] == written
    assert table['row'].to_pylist() == list(range(37))


class Stopped(BaseException):
    """As a signal does, at a place that is chosen."""


@pytest.mark.parametrize('form', parts.FORMATS)
def test_what_is_stopped_goes_on(form, whole, checkpoint, tmp_path, monkeypatch):
    """Before and after each change to the disk, one after the other, to the very bytes."""
    command, stops = given(checkpoint, tmp_path / form, form), 0
    for place in range(99):
        left = [place]

        def stopping(function, left=left):
            def run(*arguments, **options):
                if left[0] < 2:  # before it, or after it
                    if left[0]:
                        function(*arguments, **options)
                    raise Stopped
                left[0] -= 2
                return function(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, 'fsync', stopping(os.fsync))
            patch.setattr(os, 'replace', stopping(os.replace))
            try:
                call(embed, *command)
                break
            except Stopped:
                stops += 1
    assert stops > 3 and files(tmp_path / form) == files(whole / form)
    call(embed, *command)
    assert files(tmp_path / form) == files(whole / form)


@pytest.mark.slow
@pytest.mark.parametrize('form', parts.FORMATS)
def test_killed_at_random(form, checkpoint, tmp_path):
    """SIGKILL at a random moment, twice."""
    command = ['-m', 'beit_jax.tools.embed', *given(checkpoint, tmp_path / form, form)]
    command += ['--data.num_examples=1009']
    random = np.random.default_rng()
    for _ in range(2):
        process = tiny.start(command)
        while not list(tmp_path.rglob('part-*')) and not list(tmp_path.rglob('*.csv')):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        time.sleep(seconds := random.uniform(0, 1))
        print(f'killed after {seconds} s')
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert tiny.run(command).returncode == 0
    command = given(checkpoint, tmp_path / 'whole', form, '--data.num_examples=1009')
    done = tiny.run(['-m', 'beit_jax.tools.embed', *command])
    assert done.returncode == 0 and '1,009 pictures' in done.stdout, done.stderr
    killed = {name: it for name, it in files(tmp_path / form).items() if not name.startswith('.')}
    assert killed == files(tmp_path / 'whole')


@pytest.mark.parametrize('form', parts.FORMATS)
def test_shards(form, whole, checkpoint, tmp_path, capsys):
    """Three jobs that know nothing of each other, in any order."""
    command = given(checkpoint, tmp_path / form, form)
    for shard, said in (
        (2, '2 of 4 parts, 2 are missing'),
        (0, '1 of 4 parts, 1 are missing'),
        (1, f'float32 [16] each -> {tmp_path / form}'),
    ):
        call(embed, *command, f'--shard={shard}/3')
        assert said in capsys.readouterr().out
    assert files(tmp_path / form) == files(whole / form)


def test_two_processes(whole, checkpoint, tmp_path):
    """As a pod's, which share by themselves. One device each: bits of another shape may differ."""
    command = ['-m', 'beit_jax.tools.embed', *given(checkpoint, tmp_path / 'npy')]
    pair = tiny.start_pair(command)
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    ours, theirs = files(tmp_path / 'npy'), files(whole / 'npy')
    assert ours.keys() == theirs.keys() and ours['rows.csv'] == theirs['rows.csv']
    rows = [np.load(folder / 'npy' / 'embeddings.npy') for folder in (tmp_path, whole)]
    np.testing.assert_allclose(*rows, atol=1e-5)


@pytest.mark.parametrize('form', parts.FORMATS)
def test_unreadable_pictures(form, checkpoint, tmp_path, capsys):
    write_photos(tmp_path / 'photos')
    bad = tmp_path / 'photos' / '3_bad.jpg'
    bad.write_bytes(b'no picture')
    more = {'checkpoint': checkpoint, 'images': tmp_path / 'photos', 'format': form, 'rows': 3}
    call(embed, **more, output=tmp_path / 'e')
    said = capsys.readouterr()
    assert f'warning: {bad} (image 3) cannot be read; its row is NaN' in said.err
    assert '9 pictures, layer 2 of 2, float32 [16] each (1 that cannot be read are NaN' in said.out
    if form == 'npy':
        rows, label = np.load(tmp_path / 'e' / 'embeddings.npy'), lines(tmp_path / 'e')[4][1]
    else:
        table = pyarrow.dataset.dataset(tmp_path / 'e').to_table()
        rows, label = np.array(table['embedding'].to_pylist()), table['label'][3].as_py() or ''
    assert np.flatnonzero(np.isnan(rows).any(1)).tolist() == [3] and label == ''
    with pytest.raises(RequestError, match=r'3_bad.jpg \(image 3\) cannot be read: repair'):
        call(embed, '--strict', **more, output=tmp_path / 's')


def test_storage_that_goes_away(checkpoint, tmp_path, monkeypatch):
    """Its pictures are not taken for bad ones: what is not read is not written."""
    write_photos(tmp_path / 'photos')
    more = {'checkpoint': checkpoint, 'images': tmp_path / 'photos', 'format': 'npy', 'rows': 3}
    output, write = tmp_path / 'e', parts.Array.write

    def write_and_unmount(*arguments):
        write(*arguments)
        (tmp_path / 'photos').rename(tmp_path / 'away')

    with monkeypatch.context() as patch:
        patch.setattr(parts.Array, 'write', write_and_unmount)
        with pytest.raises(StorageError, match='8 of 8 pictures looked at cannot be read now'):
            call(embed, **more, output=output)
    assert os.listdir(output / '.parts') == ['00000.csv']
    (tmp_path / 'away').rename(tmp_path / 'photos')
    call(embed, **more, output=output)
    call(embed, **more, output=tmp_path / 'whole')
    assert files(output) == files(tmp_path / 'whole')


def test_a_full_disk(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        monkeypatch.setattr('sys.argv', ['embed', *given(checkpoint, tmp_path / 'npy')])
        with pytest.raises(SystemExit, match='74'):
            embed.arguments.main(embed.run, embed._arguments())


def test_something_else(whole, checkpoint, tokenizer_dir, tmp_path):
    """Which is named, and nothing changes."""
    before, other = files(whole), tmp_path / 'other'
    task = make_task(task_config(tiny.classify_settings(data={'evaluate_crop': 0.8})))
    tiny.save_checkpoint(other, task, seed=1)
    for changed, message in (
        ('--layer=1', 'holds embeddings of something else (layer was 2, is 1): give'),
        ('--pool=cls', 'pool was mean, is cls'),
        ('--rows=12', 'rows was 11, is 12'),
        ('--dtype=bfloat16', 'dtype was float32, is bfloat16'),
        ('--stored=float16', 'stored was float32, is float16'),
        ('--batch=16', 'batch was 8, is 16'),
        (f'--checkpoint={other}', '(model was '),
        ('--data.level=hard', '(data was '),
        ('--data.num_examples=38', 'images was 37, is 38'),
        ('--format=parquet', 'format was npy, is parquet'),
    ):
        with pytest.raises(RequestError) as error:
            call(embed, *given(checkpoint, whole / 'npy', 'npy', changed))
        assert message in str(error.value)
    assert files(whole) == before


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ('--format=csv', "--format='csv' is unknown"),
        ('--stored=bfloat16', "--stored='bfloat16' is unknown"),
        ('--pool=max', "--pool='max' is unknown"),
        ('--rows=0', '--batch and --rows must be positive'),
        ('--layer=3', 'there is no layer 3'),
        ('--layer=0', 'there is no layer 0'),
        ('--shard=3/3', "'3/3' is no I/N: give 0/4"),
        ('--output=.', '. holds other files (a.txt): give a new folder'),
        ('--images=nowhere.npy', '--images=nowhere.npy: no such file'),
        ('--part=evaluate', 'there are no held-out images'),
    ],
)
def test_bad_requests(changed, message, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.txt').write_text('')
    command = given(checkpoint, tmp_path / 'e', 'npy', '--data.num_evaluate_examples=0', changed)
    with pytest.raises(RequestError) as error:
        call(embed, *command)
    assert message in str(error.value) and os.listdir(tmp_path) == ['a.txt']


def test_damage(checkpoint, whole, tmp_path):
    """A file that was cut short would be filled up with zeros."""
    call(embed, *given(checkpoint, tmp_path / 'e'), '--shard=0/2')
    partial = tmp_path / 'e' / 'embeddings.npy.partial'
    partial.write_bytes(partial.read_bytes()[:-1])
    with pytest.raises(RequestError, match=r'partial is damaged: remove .*/e and start again'):
        call(embed, *given(checkpoint, tmp_path / 'e'))
    (tmp_path / 'e' / parts.ABOUT).write_text('{')
    with pytest.raises(RequestError, match=r'is damaged .*: remove .*/e and start again'):
        call(embed, *given(checkpoint, tmp_path / 'e'))


def test_numbers_that_float16_does_not_hold(tmp_path):
    """They would become infinite in silence."""
    shown = pictures.Pictures(
        2,
        'picture {}'.format,
        {},
        lambda *_: [{'image': 0, 'label': np.zeros(2, int), 'valid': np.ones(2)}],
    )
    about = {'format': 'npy', 'images': 2, 'width': 3, 'rows': 5, 'stored': 'float16'}
    folder = parts.open_parts(tmp_path / 'e', about)
    made = np.float32([[1, 2, 3], [1, 7e4, 3]])
    with pytest.raises(RequestError, match='ends at 65,504, and the embedding of picture 1 goes'):
        embedding.fill(folder, range(1), shown, lambda _: made, 2, 'float16')
    assert embedding.fill(folder, range(1), shown, lambda _: made / 2, 2, 'float16') == 0
    assert whole_files.read_json(tmp_path / 'e' / parts.ABOUT, '') == about


def test_without_pyarrow(tmp_path, monkeypatch):
    """Nothing is left behind that the next call would stumble over."""
    monkeypatch.setattr(parts.importlib.util, 'find_spec', {'numpy': 1}.get)
    about = {'format': 'parquet', 'images': 2, 'width': 3, 'rows': 5, 'stored': 'float32'}
    with pytest.raises(RequestError, match='parquet takes pyarrow: pip install pyarrow'):
        parts.open_parts(tmp_path / 'e', about)
    assert not (tmp_path / 'e').exists()
    parts.open_parts(tmp_path / 'e', about | {'format': 'npy'})
