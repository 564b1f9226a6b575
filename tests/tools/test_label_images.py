"""predict with a segmenter: label PNGs of whole pictures, against the model window by window."""

import jax
import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.label_pictures import palette
from beit_jax.errors import RequestError
from beit_jax.performance import input_benchmark
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import predict
from tests import tiny
from tests.tools.call import call
from tests.train.test_segmentation import enlarge, picture

CLASSES = tuple('abcdefg')


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    """(label_windows with its parameters, work directory)."""
    settings = tiny.segment_settings(inference={'stride': 9})
    task = make_task(task_config(settings).resolve(37, CLASSES))
    workdir = tmp_path_factory.mktemp('segmenter')
    params = tiny.save_checkpoint(workdir, task, classes=CLASSES)
    return jax.jit(lambda windows: task.label_windows(params, windows)), workdir


def test_label_pngs(segmenter, tmp_path, capsys):
    """A picture of two windows and one of one, in folders that the output repeats; the stride is
    the checkpoint's."""
    images = {'a.png': picture(20, 29), 'deep/b.png': picture(20, 20, 1)}
    given, output = tmp_path / 'in', tmp_path / 'out'
    (given / 'deep').mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(given / name)
    label_windows, workdir = segmenter
    call(predict, checkpoint=workdir, images=given, output=output, batch_size=2)
    windows = np.stack([images['a.png'][:, :20], images['a.png'][:, 9:], images['deep/b.png']])
    logits = [enlarge(one, 20, 20) for one in np.asarray(label_windows(windows))]
    total, count = np.zeros((20, 29, 7)), np.zeros((20, 29, 1))
    for left, one in zip((0, 9), logits):
        total[:, left : left + 20] += one
        count[:, left : left + 20] += 1
    for name, scores in (('a.png', total / count), ('deep/b.png', logits[2])):
        found = Image.open(output / name)
        best = np.sort(scores, axis=-1)
        clear = best[..., -1] - best[..., -2] > 1e-5  # not within rounding
        np.testing.assert_array_equal(np.asarray(found)[clear], scores.argmax(-1)[clear])
        assert clear.mean() > 0.9 and found.mode == 'P'
        colours = np.asarray(found.convert('RGB'))
        np.testing.assert_array_equal(colours, palette()[np.asarray(found)])
    out = capsys.readouterr().out
    assert '980 pixels' in out and 'of the pixels: ' in out


def test_floats(segmenter, tmp_path):
    """Windows of them, resized ones too, are not rounded to bytes."""
    label_windows, workdir = segmenter
    pixels = np.random.default_rng(0).random((1, 20, 20, 3), np.float32)
    np.save(tmp_path / 'f.npy', pixels)
    call(predict, checkpoint=workdir, images=tmp_path / 'f.npy', output=tmp_path / 'out')
    expected = enlarge(np.asarray(label_windows(pixels))[0], 20, 20)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    found = np.asarray(Image.open(next((tmp_path / 'out').iterdir())))
    np.testing.assert_array_equal(found[clear], expected.argmax(-1)[clear])
    np.save(tmp_path / 'g.npy', np.full((1, 29, 31, 3), 0.5, np.float32))
    call(predict, checkpoint=workdir, images=tmp_path / 'g.npy', output=tmp_path / 'out')


def labels(segmenter, images, output, *more):
    """Runs predict; what it wrote, sorted."""
    call(predict, *more, checkpoint=segmenter[1], images=images, output=output)
    return sorted(str(file.relative_to(output)) for file in output.rglob('*.*'))


def test_a_file_for_each_picture(segmenter, tmp_path):
    """Pictures of one name, and those of an array."""
    given, output = tmp_path / 'in', tmp_path / 'out'
    for name in ('a/x.jpg', 'b/x.png', 'b/x.jpg', 'b/y.jpeg'):
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20, 20)).save(given / name)
    expected = ['a/x.png', 'b/x.jpg.png', 'b/x.png.png', 'b/y.png']
    assert labels(segmenter, given, output) == expected
    np.save(tmp_path / 'many.npy', np.stack([picture(20, 20, i) for i in range(3)]))
    written = labels(segmenter, tmp_path / 'many.npy', tmp_path / 'array')
    assert written == [f'many-0000{i}.png' for i in range(3)]


def test_pictures_are_not_written_over(segmenter, tmp_path):
    """Neither a folder of them, nor the one, nor one of the name that another would get."""
    given = tmp_path / 'in'
    given.mkdir()
    for name in ('x.png', 'x.jpg', 'x.jpg.png'):
        Image.fromarray(picture(20, 20)).save(given / name)
    before = {file: file.read_bytes() for file in given.rglob('*.*')}
    for images, output, message in (
        (given, given, r'lies in .*/in, which is read'),
        (given, given / 'labels', r'lies in .*/in, which is read'),
        (given / 'x.png', given, r'x.png would be written to .*in/x.png, which is another'),
        (given, tmp_path / 'out', r'would be written to .*out/x.jpg.png, which is another picture'),
    ):
        with pytest.raises(RequestError, match=message):
            labels(segmenter, images, output)
    assert {file: file.read_bytes() for file in given.rglob('*.*')} == before
    assert not (tmp_path / 'out').exists()


def test_a_picture_that_cannot_be_read(segmenter, tmp_path, capsys):
    given = tmp_path / 'in'
    given.mkdir()
    for name in 'abc':
        Image.fromarray(picture(20, 20)).save(given / f'{name}.png')
    (given / 'b.png').write_bytes(b'no picture')
    assert labels(segmenter, given, tmp_path / 'out') == ['a.png', 'c.png']
    said = capsys.readouterr()
    assert 'in/b.png cannot be read as an image' in said.err and '(1 that cannot' in said.out
    with pytest.raises(RequestError, match=r'in/b.png cannot be read'):
        labels(segmenter, given, tmp_path / 'strict', '--strict')
    with pytest.raises(RequestError, match='none of its pictures can be read'):
        labels(segmenter, given / 'b.png', tmp_path / 'none')


@pytest.mark.slow
def test_multiscale(segmenter, tmp_path):
    _, workdir = segmenter
    image, output = tmp_path / 'c.jpg', tmp_path / 'out'
    Image.fromarray(picture(31, 47)).save(image)
    call(predict, '--multiscale', checkpoint=workdir, images=image, output=output)
    assert Image.open(tmp_path / 'out' / 'c.png').size == (47, 31)


def test_refusals(segmenter, tmp_path):
    _, workdir = segmenter
    image, output = tmp_path / 'c.png', tmp_path / 'o.npz'
    Image.fromarray(picture(20, 20)).save(image)
    message = 'this checkpoint labels pixels; give a folder for the PNGs'
    with pytest.raises(RequestError, match=message):
        call(predict, checkpoint=workdir, images=image, output=output)
    with pytest.raises(RequestError, match='label maps have no peer here'):
        input_benchmark.benchmark_input(task_config(tiny.segment_settings()), 64, 1, 1)
