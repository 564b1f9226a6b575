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
from beit_jax.data.pictures.load import load_images
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from beit_jax.tools import evaluate_tokenizer, fit_tokenizer, tokenize
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.photos import write_photos

KMEANS = ('--kind', 'kmeans', '--vocabulary', 13, '--patch_size', 3, '--image_size', 15)
SHAPES = ('--data.name', 'shapes', '--data.evaluate_crop', '1')


def call(tool, *arguments):
    tool.run(tool._arguments().parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    """K-means with 13 tokens on 15 x 15 pictures, cells of 3."""
    directory = tmp_path_factory.mktemp('kmeans')
    call(fit_tokenizer, *KMEANS, '--patches', 2003, '--output', directory, *SHAPES)
    return directory


def shapes(count, split='train'):
    source = ShapesSource(count, 15, 'easy', split)
    return np.stack([source.read(i).image for i in range(count)])


def ids_of(directory, images):
    tokenizer, params = load_tokenizer(str(directory))
    return np.asarray(tokenizer.encode(params, images.astype(np.float32) / 255))


def test_fit(fitted, tmp_path):
    tokenizer, _ = load_tokenizer(str(fitted))
    assert (tokenizer.kind, tokenizer.vocabulary, tokenizer.factor, tokenizer.image_size) == (
        'kmeans',
        13,
        3,
        15,
    )
    assert len(np.unique(ids_of(fitted, shapes(200)))) == 13
    call(
        fit_tokenizer,
        '--kind',
        'random_projection',
        '--vocabulary',
        31,
        '--patch_size',
        5,
        '--image_size',
        15,
        '--output',
        tmp_path / 'r',
    )
    assert len(np.unique(ids_of(tmp_path / 'r', shapes(200)))) > 10
    for arguments, message in (
        (['--patches', 12], '--patches 12 are too few'),
        (['--image_size', 16], 'cannot cut pictures of 16'),
        (['--data.name', 'folder'], 'give --data.path'),
    ):
        with pytest.raises(RequestError, match=message):
            call(fit_tokenizer, *KMEANS, '--output', tmp_path / 'x', *SHAPES, *arguments)
    assert not (tmp_path / 'x').exists()


def test_evaluate(fitted, tmp_path, capsys):
    """53 held-out pictures in batches of 16, against scikit-image and SciPy on the same
    pictures."""
    call(
        evaluate_tokenizer,
        '--tokenizer',
        fitted,
        '--batch',
        16,
        *SHAPES,
        '--data.num_evaluate_examples',
        53,
        '--json',
        tmp_path / 'f.json',
        '--output',
        tmp_path / 'new' / 'p.png',
    )
    figures = json.loads((tmp_path / 'f.json').read_text())
    images, (tokenizer, params) = shapes(53, 'evaluate'), load_tokenizer(str(fitted), decoder=True)
    ids = ids_of(fitted, images)
    pairs = list(zip(images.astype(np.float32) / 255, np.asarray(tokenizer.decode(params, ids))))
    assert figures['images'] == 53 and figures['vocabulary'] == 13
    assert figures['psnr'] == pytest.approx(
        np.mean([skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]),
        rel=1e-5,
    )
    assert figures['ssim'] == pytest.approx(
        np.mean(
            [
                skimage.metrics.structural_similarity(
                    a,
                    b,
                    channel_axis=-1,
                    data_range=1,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
                for a, b in pairs
            ]
        ),
        abs=1e-5,
    )
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
    assert f'PSNR {figures["psnr"]:.2f} dB' in capsys.readouterr().out


def test_evaluate_without_a_decoder(tmp_path, capsys):
    call(
        fit_tokenizer,
        '--kind',
        'random_projection',
        '--vocabulary',
        31,
        '--patch_size',
        5,
        '--image_size',
        15,
        '--output',
        tmp_path / 'r',
    )
    call(evaluate_tokenizer, '--tokenizer', tmp_path / 'r', *SHAPES, '--limit', 10)
    assert 'PSNR none' in capsys.readouterr().out
    with pytest.raises(RequestError, match='has no decoder'):
        call(
            evaluate_tokenizer,
            '--tokenizer',
            tmp_path / 'r',
            *SHAPES,
            '--limit',
            10,
            '--output',
            tmp_path / 'p.png',
        )


def test_tokenize_images(fitted, tmp_path):
    """A .npy of the tokenizer's size goes in as it is; photographs as the other tools read them."""
    np.save(tmp_path / 'images.npy', shapes(11))
    call(
        tokenize,
        '--tokenizer',
        fitted,
        '--images',
        tmp_path / 'images.npy',
        '--output',
        tmp_path / 'ids.npy',
        '--batch',
        3,
    )
    ids = np.load(tmp_path / 'ids.npy')
    assert ids.dtype == np.uint16 and ids.shape == (11, 25)
    np.testing.assert_array_equal(ids, ids_of(fitted, shapes(11)))
    write_photos(tmp_path / 'photos')
    call(
        tokenize,
        '--tokenizer',
        fitted,
        '--images',
        tmp_path / 'photos',
        '--output',
        tmp_path / 'photos.npy',
        '--image_size',
        21,
    )
    np.testing.assert_array_equal(
        np.load(tmp_path / 'photos.npy'),
        ids_of(fitted, load_images(str(tmp_path / 'photos'), 21)[0]),
    )


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_interrupted_export_goes_on(fitted, tmp_path, monkeypatch):
    """37 pictures in batches of 8: stopped after each of them, and once between the rows and their
    record."""
    arguments = ['--tokenizer', fitted, *SHAPES, '--data.num_examples', 37, '--batch', 8]
    call(tokenize, *arguments, '--output', tmp_path / 'whole' / 'ids.npy')
    np.testing.assert_array_equal(
        np.load(tmp_path / 'whole' / 'ids.npy'), ids_of(fitted, shapes(37))
    )
    write, record = tokenize.Export.write, whole_files.write
    for stopped in range(5):
        batches = []

        def stop(self, *rows, batches=batches, stopped=stopped):
            write(self, *rows)
            batches.append(1)
            if len(batches) == 1 and stopped < 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(tokenize.Export, 'write', stop)
        if stopped == 2:  # rows written, not recorded
            monkeypatch.setattr(
                whole_files, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
        if stopped < 4:
            with pytest.raises(KeyboardInterrupt):
                call(tokenize, *arguments, '--output', tmp_path / 'parts' / 'ids.npy')
            assert not (tmp_path / 'parts' / 'ids.npy').exists()
        else:
            call(tokenize, *arguments, '--output', tmp_path / 'parts' / 'ids.npy')
        monkeypatch.setattr(whole_files, 'write', record)
    assert files(tmp_path / 'parts') == files(tmp_path / 'whole')


def test_records_of_rows_that_are_gone(fitted, tmp_path, monkeypatch):
    """Rows lost, restarted and killed before the first batch; killed when all was written but the
    name; damaged records."""
    arguments = [
        '--tokenizer',
        fitted,
        *SHAPES,
        '--data.num_examples',
        37,
        '--batch',
        8,
        '--output',
        tmp_path / 'ids.npy',
    ]
    finish, write = tokenize.Export.finish, tokenize.Export.write

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenize.Export, 'finish', stop)
    with pytest.raises(KeyboardInterrupt):
        call(tokenize, *arguments)
    kept = files(tmp_path)
    monkeypatch.setattr(tokenize.Export, 'write', stop)
    (tmp_path / 'ids.npy.partial').unlink()
    with pytest.raises(KeyboardInterrupt):
        call(tokenize, *arguments)
    monkeypatch.setattr(tokenize.Export, 'write', write)
    monkeypatch.setattr(tokenize.Export, 'finish', finish)
    call(tokenize, *arguments)
    np.testing.assert_array_equal(np.load(tmp_path / 'ids.npy'), ids_of(fitted, shapes(37)))
    whole = files(tmp_path)
    for damaged, message in (
        (None, ''),
        ('ids.npy.partial', 'is damaged: remove both'),
        ('ids.npy.progress', 'progress is damaged'),
    ):
        (tmp_path / 'ids.npy').unlink(missing_ok=True)
        for name, content in kept.items():
            (tmp_path / name).write_bytes(content if name != damaged else b'{')
        if damaged:
            with pytest.raises(RequestError, match=message):
                call(tokenize, *arguments)
        else:
            call(tokenize, *arguments)
            assert files(tmp_path) == whole


def test_killed_export_goes_on(fitted, tmp_path):
    """SIGKILL in the middle of 3,000 pictures."""
    command = [
        '-m',
        'beit_jax.tools.tokenize',
        '--tokenizer',
        str(fitted),
        *SHAPES,
        '--data.num_examples',
        '3000',
        '--batch',
        '50',
        '--output',
    ]
    whole = tiny.start([*command, str(tmp_path / 'whole' / 'ids.npy')])
    process, progress = (
        tiny.start([*command, str(tmp_path / 'killed' / 'ids.npy')]),
        tmp_path / 'killed' / 'ids.npy.progress',
    )
    while not (progress.exists() and json.loads(progress.read_text())['done'] > 300):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / 'killed' / 'ids.npy').exists()
    assert whole.communicate(timeout=300) and whole.returncode == 0
    done = tiny.run([*command, str(tmp_path / 'killed' / 'ids.npy')])
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / 'killed') == files(tmp_path / 'whole')


def test_two_hosts_write_a_file_each(fitted, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [
        '-m',
        'beit_jax.tools.tokenize',
        '--tokenizer',
        str(fitted),
        *SHAPES,
        '--data.num_examples',
        '37',
        '--output',
        str(tmp_path / 'ids.npy'),
        f'--coordinator=127.0.0.1:{port}',
        '--num_processes=2',
    ]
    pair = [tiny.start([*command, f'--process_id={i}'], JAX_NUM_CPU_DEVICES='1') for i in range(2)]
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    parts = [np.load(tmp_path / f'ids-0000{i}-of-00002.npy') for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), ids_of(fitted, shapes(37)))


def test_bad_images_are_named(fitted, tmp_path, capsys):
    write_photos(tmp_path / 'photos')
    (tmp_path / 'photos' / '3_bad.jpg').write_bytes(b'no picture')
    call(
        tokenize,
        '--tokenizer',
        fitted,
        '--data.path',
        tmp_path / 'photos',
        '--output',
        tmp_path / 'ids.npy',
        '--batch',
        4,
    )
    ids, description = (
        np.load(tmp_path / 'ids.npy'),
        json.loads((tmp_path / 'ids.npy.json').read_text()),
    )
    assert (
        description['bad'] == [3]
        and not ids[3].any()
        and all(row.any() for i, row in enumerate(ids) if i != 3)
    )
    assert 'image 3 cannot be read' in capsys.readouterr().out


def test_export_of_something_else(fitted, tmp_path):
    output = ['--output', tmp_path / 'ids.npy']
    call(tokenize, '--tokenizer', fitted, *SHAPES, '--data.num_examples', 7, *output)
    before = files(tmp_path)
    call(tokenize, '--tokenizer', fitted, *SHAPES, '--data.num_examples', 7, *output)
    for arguments, message in (
        (['--data.num_examples', 8], 'images was 7, is 8'),
        (['--data.evaluate_crop', 0.5], 'crop was 1.0, is 0.5'),
        (['--precision', 'bfloat16'], 'precision was float32'),
        (['--image_size', 30], 'image_size was 15, is 30'),
    ):
        with pytest.raises(
            RequestError, match=f'ids.npy holds tokens of something else .*{message}'
        ):
            call(
                tokenize,
                '--tokenizer',
                fitted,
                *SHAPES,
                '--data.num_examples',
                7,
                *arguments,
                *output,
            )
    with pytest.raises(RequestError, match='image_size=16 is not a multiple of 3'):
        call(tokenize, '--tokenizer', fitted, *SHAPES, '--image_size', 16, *output)
    with pytest.raises(RequestError, match='image_size=16 is not a multiple of 3'):
        call(evaluate_tokenizer, '--tokenizer', fitted, *SHAPES, '--image_size', 16)
    with pytest.raises(RequestError, match='--batch is 0: use at least 1'):
        call(tokenize, '--tokenizer', fitted, *SHAPES, '--batch', 0, *output)
    with pytest.raises(RequestError, match=r'evaluate_crop is 2.0: use a share'):
        call(tokenize, '--tokenizer', fitted, *SHAPES, '--data.evaluate_crop', 2, *output)
    with pytest.raises(
        RequestError, match=r'tokenizer /nowhere: there is no tokenizer.safetensors'
    ):
        call(tokenize, '--tokenizer', '/nowhere', *SHAPES, *output)
    assert files(tmp_path) == before
