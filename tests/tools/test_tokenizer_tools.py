"""fit_tokenizer, evaluate_tokenizer and tokenize: what they write, that a killed export goes on,
and the requests they refuse."""

import json
import signal
import socket
import time

import numpy as np
from PIL import Image
import pytest
import scipy.stats
import skimage.metrics

from beit_jax import whole_files
from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.load import load_images
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from beit_jax.inference.tokenizing import Export
from beit_jax.tools import evaluate_tokenizer, fit_tokenizer, tokenize
from beit_jax.weights.tokenizer import known_psnr, load_tokenizer
from tests import tiny
from tests.photos import write_photos
from tests.tools.call import call

KMEANS = {'kind': 'kmeans', 'vocabulary': 13, 'patch_size': 3, 'image_size': 15}
PROJECTION = {'kind': 'random_projection', 'vocabulary': 31, 'patch_size': 5, 'image_size': 15}
SHAPES = ('--data.name=shapes', '--data.evaluate_crop=1')
SHAPES_7 = (*SHAPES, '--data.num_examples=7')
SHAPES_37 = (*SHAPES, '--data.num_examples=37')


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    """K-means with 13 tokens on 15 x 15 pictures, cells of 3."""
    directory = tmp_path_factory.mktemp('kmeans')
    call(fit_tokenizer, *SHAPES, **KMEANS, patches=2003, output=directory)
    return directory


def shapes(count, split='train'):
    source = ShapesSource(count, 15, 'easy', split)
    return np.stack([source.read(i).image for i in range(count)])


def ids_of(directory, images):
    tokenizer, params = load_tokenizer(str(directory))
    return np.asarray(tokenizer.encode(params, images.astype(np.float32) / 255))


def test_fit(fitted, tmp_path):
    tokenizer, _ = load_tokenizer(str(fitted))
    assert (tokenizer.kind, tokenizer.vocabulary) == ('kmeans', 13)
    assert (tokenizer.factor, tokenizer.image_size) == (3, 15)
    assert len(np.unique(ids_of(fitted, shapes(200)))) == 13
    # what it draws of the first patches, of one token each, by NumPy
    tokenizer, params = load_tokenizer(str(fitted), decoder=True)
    data = DataConfig(name='shapes', image_size=15)
    patches = fit_tokenizer.random_patches(data, 3, 2003, 0)[:1000].reshape(-1, 3, 3, 3)
    drawn = params['decoder']['patches'][np.ravel(tokenizer.encode(params, patches))]
    psnr = -10 * np.log10(np.mean((drawn.reshape(patches.shape) - patches) ** 2))
    assert known_psnr(str(fitted)) == pytest.approx(psnr, abs=1e-3)
    call(fit_tokenizer, **PROJECTION, output=tmp_path / 'r')
    assert known_psnr(str(tmp_path / 'r')) is None
    assert len(np.unique(ids_of(tmp_path / 'r', shapes(200)))) > 10
    with pytest.raises(RequestError, match='r is there already: give another name'):
        call(fit_tokenizer, **PROJECTION, output=tmp_path / 'r', seed=1)
    for changed, message in (
        ({'patches': 12}, '--patches 12 are too few'),
        ({'image_size': 16}, 'cannot cut pictures of 16'),
        ({'data.name': 'folder'}, 'give --data.path'),
    ):
        with pytest.raises(RequestError, match=message):
            call(fit_tokenizer, *SHAPES, **KMEANS | {'output': tmp_path / 'x'} | changed)
    assert not (tmp_path / 'x').exists()


def skimage_quality(images, reconstructions):
    """(mean PSNR, mean SSIM) of uint8 and float pictures."""
    pairs = list(zip(images.astype(np.float32) / 255, reconstructions))
    psnr = [skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    settings = {
        'channel_axis': -1,
        'data_range': 1,
        'gaussian_weights': True,
        'sigma': 1.5,
        'use_sample_covariance': False,
    }
    ssim = [skimage.metrics.structural_similarity(a, b, **settings) for a, b in pairs]
    return np.mean(psnr), np.mean(ssim)


def test_evaluate(fitted, tmp_path, capsys):
    """53 held-out pictures in batches of 16, against scikit-image and SciPy on the same."""
    call(
        evaluate_tokenizer,
        *SHAPES,
        '--data.num_evaluate_examples=53',
        tokenizer=fitted,
        batch=16,
        json=tmp_path / 'f.json',
        output=tmp_path / 'new' / 'p.png',
    )
    figures = json.loads((tmp_path / 'f.json').read_text())
    images, (tokenizer, params) = shapes(53, 'evaluate'), load_tokenizer(str(fitted), decoder=True)
    ids = ids_of(fitted, images)
    assert figures['images'] == 53 and figures['vocabulary'] == 13
    psnr, ssim = skimage_quality(images, np.asarray(tokenizer.decode(params, ids)))
    assert figures['psnr'] == pytest.approx(psnr, rel=1e-5)
    assert figures['ssim'] == pytest.approx(ssim, abs=1e-5)
    counts = np.bincount(ids.ravel(), minlength=13)
    assert figures['codebook_usage'] == np.mean(counts > 0)
    assert figures['token_perplexity'] == pytest.approx(np.exp(scipy.stats.entropy(counts)))
    positions = [scipy.stats.entropy(np.bincount(column, minlength=13), base=2) for column in ids.T]
    np.testing.assert_allclose(
        figures['position_entropy'], np.reshape(positions, (5, 5)), atol=1e-12
    )
    assert figures['agreement']['float32'] == 1 and 0.9 < figures['agreement']['bfloat16'] <= 1
    assert all(rate > 0 for rate in figures['images_per_second'].values())
    assert Image.open(tmp_path / 'new' / 'p.png').size == (8 * 112, 2 * 112)
    said = capsys.readouterr().out
    assert f'PSNR {figures["psnr"]:.2f} dB' in said
    # what would be measured twice is not
    assert 'tensorfloat32     is float32 on this device\n' in said and '\nbfloat16  ' in said
    assert figures['agreement']['tensorfloat32'] == 1


def test_evaluate_without_a_decoder(tmp_path, capsys):
    call(fit_tokenizer, **PROJECTION, output=tmp_path / 'r')
    given = {'tokenizer': tmp_path / 'r', 'limit': 10}
    call(evaluate_tokenizer, *SHAPES, **given)
    assert 'PSNR none' in capsys.readouterr().out
    with pytest.raises(RequestError, match='has no decoder'):
        call(evaluate_tokenizer, *SHAPES, **given, output=tmp_path / 'p.png')


def test_tokenize_images(fitted, tmp_path):
    """A .npy of the tokenizer's size goes in as it is; photographs as the other tools read them."""
    images, output = tmp_path / 'images.npy', tmp_path / 'ids.npy'
    np.save(images, shapes(11))
    call(tokenize, tokenizer=fitted, images=images, output=output, batch=3)
    ids = np.load(output)
    assert ids.dtype == np.uint16 and ids.shape == (11, 25)
    np.testing.assert_array_equal(ids, ids_of(fitted, shapes(11)))
    photos, output = tmp_path / 'photos', tmp_path / 'photos.npy'
    write_photos(photos)
    call(tokenize, tokenizer=fitted, images=photos, output=output, image_size=21)
    expected = ids_of(fitted, load_images(str(photos), 21)[0])
    np.testing.assert_array_equal(np.load(output), expected)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_interrupted_export_goes_on(fitted, tmp_path, monkeypatch):
    """37 pictures in batches of 8: stopped after each of them, once between rows and record."""
    whole, parts = tmp_path / 'whole' / 'ids.npy', tmp_path / 'parts' / 'ids.npy'
    call(tokenize, *SHAPES_37, tokenizer=fitted, batch=8, output=whole)
    np.testing.assert_array_equal(np.load(whole), ids_of(fitted, shapes(37)))
    write, record = Export.write, whole_files.write

    def write_and_stop(self, *rows):
        write(self, *rows)
        raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Export, 'write', write_and_stop)
    for stopped in range(4):
        if stopped == 2:  # rows written, not recorded
            monkeypatch.setattr(whole_files, 'write', stop)
        with pytest.raises(KeyboardInterrupt):
            call(tokenize, *SHAPES_37, tokenizer=fitted, batch=8, output=parts)
        assert not parts.exists()
        monkeypatch.setattr(whole_files, 'write', record)
    monkeypatch.setattr(Export, 'write', write)
    call(tokenize, *SHAPES_37, tokenizer=fitted, batch=8, output=parts)
    assert files(tmp_path / 'parts') == files(tmp_path / 'whole')


def test_records_of_rows_that_are_gone(fitted, tmp_path, monkeypatch):
    """Rows lost, restarted and killed before the first batch; killed when all was written but the
    name; damaged records."""
    given = {'tokenizer': fitted, 'batch': 8, 'output': tmp_path / 'ids.npy'}
    finish, write = Export.finish, Export.write

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Export, 'finish', stop)
    with pytest.raises(KeyboardInterrupt):
        call(tokenize, *SHAPES_37, **given)
    kept = files(tmp_path)
    monkeypatch.setattr(Export, 'write', stop)
    (tmp_path / 'ids.npy.partial').unlink()
    with pytest.raises(KeyboardInterrupt):
        call(tokenize, *SHAPES_37, **given)
    monkeypatch.setattr(Export, 'write', write)
    monkeypatch.setattr(Export, 'finish', finish)
    call(tokenize, *SHAPES_37, **given)
    np.testing.assert_array_equal(np.load(tmp_path / 'ids.npy'), ids_of(fitted, shapes(37)))
    whole = files(tmp_path)
    strange = json.loads(kept['ids.npy.progress']) | {'done': 38}
    for damaged, content, message in (
        (None, b'', ''),
        ('ids.npy.partial', b'{', 'is damaged: remove both'),
        ('ids.npy.partial', kept['ids.npy.partial'][:-6], 'is damaged: remove both'),
        ('ids.npy.partial', whole['ids.npy'].replace(b'<u2', b'<i2'), 'is damaged: remove both'),
        ('ids.npy.progress', b'{', 'progress is damaged'),
        ('ids.npy.progress', json.dumps(strange).encode(), 'is damaged: remove both'),
    ):
        (tmp_path / 'ids.npy').unlink(missing_ok=True)
        for name in kept:
            (tmp_path / name).write_bytes(content if name == damaged else kept[name])
        if damaged:
            with pytest.raises(RequestError, match=message):
                call(tokenize, *SHAPES_37, **given)
        else:
            call(tokenize, *SHAPES_37, **given)
            assert files(tmp_path) == whole


@pytest.mark.once
def test_killed_export_goes_on(fitted, tmp_path):
    """SIGKILL in the middle of 3,000 pictures."""
    command = ['-m', 'beit_jax.tools.tokenize', f'--tokenizer={fitted}', *SHAPES]
    command += ['--data.num_examples=3000', '--batch=50']
    killed = f'--output={tmp_path}/killed/ids.npy'
    whole = tiny.start([*command, f'--output={tmp_path}/whole/ids.npy'])
    process = tiny.start([*command, killed])
    progress = tmp_path / 'killed' / 'ids.npy.progress'
    while not (progress.exists() and json.loads(progress.read_text())['done'] > 300):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / 'killed' / 'ids.npy').exists()
    assert whole.communicate(timeout=300) and whole.returncode == 0
    done = tiny.run([*command, killed])
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / 'killed') == files(tmp_path / 'whole')


def test_two_hosts_write_a_file_each(fitted, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = ['-m', 'beit_jax.tools.tokenize', f'--tokenizer={fitted}', *SHAPES_37]
    command += [f'--output={tmp_path}/ids.npy']
    command += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2']
    pair = [tiny.start([*command, f'--process_id={i}'], JAX_NUM_CPU_DEVICES='1') for i in range(2)]
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    parts = [np.load(tmp_path / f'ids-0000{i}-of-00002.npy') for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), ids_of(fitted, shapes(37)))


@pytest.mark.parametrize('option', ['--data.path', '--images'])
def test_bad_images_are_named(option, fitted, tmp_path, capsys):
    write_photos(tmp_path / 'photos')
    bad = tmp_path / 'photos' / '3_bad.jpg'
    bad.write_bytes(b'no picture')
    given = {'tokenizer': fitted, 'output': tmp_path / 'ids.npy', 'batch': 4}
    call(tokenize, f'{option}={tmp_path}/photos', **given)
    ids = np.load(tmp_path / 'ids.npy')
    assert json.loads((tmp_path / 'ids.npy.json').read_text())['bad'] == [3]
    assert not ids[3].any() and all(row.any() for i, row in enumerate(ids) if i != 3)
    said = capsys.readouterr()
    assert f'warning: {bad} (image 3) cannot be read; its tokens are 0' in said.err
    assert 'tokens (1 that cannot be read have tokens 0), uint16' in said.out
    (tmp_path / 'ids.npy').unlink()
    with pytest.raises(RequestError, match=rf'{bad} \(image 3\) cannot be read: repair'):
        call(tokenize, f'{option}={tmp_path}/photos', '--strict', **given)


def test_evaluate_leaves_out_aloud(fitted, tmp_path, capsys):
    write_photos(tmp_path / 'photos')
    (tmp_path / 'photos' / '3_bad.jpg').write_bytes(b'no picture')
    given = {'tokenizer': fitted, 'data.path': tmp_path / 'photos'}
    call(evaluate_tokenizer, **given)
    said = capsys.readouterr()
    assert '3_bad.jpg cannot be read. It is left out' in said.err
    assert '(1 that cannot be read left out: see above)' in said.out
    assert 'no speed (it takes two whole batches)' in said.out
    with pytest.raises(RequestError, match=r'3_bad\.jpg cannot be read'):
        call(evaluate_tokenizer, '--strict', **given)


def test_export_of_something_else(fitted, tmp_path):
    given = {'tokenizer': fitted, 'output': tmp_path / 'ids.npy'}
    call(tokenize, *SHAPES_7, **given)
    before = files(tmp_path)
    call(tokenize, *SHAPES_7, **given)
    other = 'ids.npy holds tokens of something else .*'
    for changed, message in (
        ('--data.num_examples=8', f'{other}images was 7, is 8'),
        ('--data.evaluate_crop=0.5', f'{other}crop was 1.0, is 0.5'),
        ('--precision=bfloat16', f'{other}precision was float32'),
        ('--image_size=30', f'{other}image_size was 15, is 30'),
    ):
        with pytest.raises(RequestError, match=message):
            call(tokenize, *SHAPES_7, changed, **given)
    for changed, message in (
        ({'image_size': 16}, 'image_size=16 is not a multiple of 3'),
        ({'batch': 0}, '--batch is 0: use at least 1'),
        (
            {'data.evaluate_crop': 2},
            r'config.data.evaluate_crop is 2.0: it takes a number in \[0.01, 1\]',
        ),
        ({'tokenizer': '/nowhere'}, r'tokenizer /nowhere: there is no tokenizer\.safetensors'),
    ):
        with pytest.raises(RequestError, match=message):
            call(tokenize, *SHAPES, **given | changed)
    with pytest.raises(RequestError, match='image_size=16 is not a multiple of 3'):
        call(evaluate_tokenizer, *SHAPES, tokenizer=fitted, image_size=16)
    assert files(tmp_path) == before
