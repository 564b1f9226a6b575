"""predict with a segmenter: label PNGs of whole pictures, against the model run window by
window."""

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
from tests.train.test_segmentation import enlarge, picture

CLASSES = tuple('abcdefg')


def options(*arguments):
    return predict._arguments().parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    """(label_windows with its parameters, work directory)."""
    task = make_task(
        task_config(tiny.segment_settings(inference={'stride': 9})).resolve(37, CLASSES)
    )
    workdir = tmp_path_factory.mktemp('segmenter')
    params = tiny.save_checkpoint(workdir, task, classes=CLASSES)
    return jax.jit(lambda windows: task.label_windows(params, windows)), workdir


def test_label_pngs(segmenter, tmp_path, capsys):
    """A picture of two windows and one of one, in folders that the output repeats; the stride is
    the checkpoint's."""
    images = {'a.png': picture(20, 29), 'deep/b.png': picture(20, 20, 1)}
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / 'in' / name)
    label_windows, workdir = segmenter
    predict.run(
        options(
            '--checkpoint',
            workdir,
            '--images',
            tmp_path / 'in',
            '--output',
            tmp_path / 'out',
            '--batch_size',
            2,
        )
    )
    windows = np.stack([images['a.png'][:, :20], images['a.png'][:, 9:], images['deep/b.png']])
    logits = [enlarge(one, 20, 20) for one in np.asarray(label_windows(windows))]
    total, count = np.zeros((20, 29, 7)), np.zeros((20, 29, 1))
    for left, one in zip((0, 9), logits):
        total[:, left : left + 20] += one
        count[:, left : left + 20] += 1
    for name, scores in (('a.png', total / count), ('deep/b.png', logits[2])):
        found = Image.open(tmp_path / 'out' / name)
        best = np.sort(scores, axis=-1)
        clear = best[..., -1] - best[..., -2] > 1e-5  # not within rounding
        np.testing.assert_array_equal(np.asarray(found)[clear], scores.argmax(-1)[clear])
        assert clear.mean() > 0.9 and found.mode == 'P'
        np.testing.assert_array_equal(
            np.asarray(found.convert('RGB')), palette()[np.asarray(found)]
        )
    out = capsys.readouterr().out
    assert '980 pixels' in out and 'of the pixels: ' in out


@pytest.mark.slow
def test_multiscale(segmenter, tmp_path):
    Image.fromarray(picture(31, 47)).save(tmp_path / 'c.jpg')
    predict.run(
        options(
            '--checkpoint',
            segmenter[1],
            '--images',
            tmp_path / 'c.jpg',
            '--output',
            tmp_path / 'out',
            '--multiscale',
        )
    )
    assert Image.open(tmp_path / 'out' / 'c.png').size == (47, 31)


def test_refusals(segmenter, tmp_path):
    Image.fromarray(picture(20, 20)).save(tmp_path / 'c.png')
    with pytest.raises(
        RequestError, match='this checkpoint labels pixels; give a folder for the PNGs'
    ):
        predict.run(
            options(
                '--checkpoint',
                segmenter[1],
                '--images',
                tmp_path / 'c.png',
                '--output',
                tmp_path / 'o.npz',
            )
        )
    with pytest.raises(RequestError, match='label maps have no peer here'):
        input_benchmark.benchmark_input(task_config(tiny.segment_settings()), 64, 1, 1)
