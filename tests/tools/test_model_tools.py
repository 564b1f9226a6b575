"""predict and attention: what they write, against the model itself, and what they refuse."""

import csv
import os
import shutil

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.grid import CELL, GAP, TITLE
from beit_jax.data.sources.shapes import SHAPES, ShapesSource
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import attention, predict
from beit_jax.weights.models import load_model
from tests import tiny
from tests.tools.call import call

COUNT = 11


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """(task, parameters, checkpoint)."""
    settings = tiny.classify_settings(head_scale=20.0, data={'evaluate_crop': 1.0})
    task = make_task(task_config(settings).resolve(37, SHAPES))
    workdir = tmp_path_factory.mktemp('classifier')
    return task, tiny.save_checkpoint(workdir, task, classes=SHAPES), workdir


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory, tokenizer_dir):
    task = make_task(task_config(tiny.settings(tokenizer_dir, model={'positions': 'shared_bias'})))
    workdir = tmp_path_factory.mktemp('pretrained')
    return task, tiny.save_checkpoint(workdir, task), workdir


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """(uint8 [11, 20, 20, 3], labels, the same as an array file, and as a folder of classes)."""
    source = ShapesSource(COUNT, 20, 'easy', 'evaluate')
    directory = tmp_path_factory.mktemp('images')
    pictures, labels = zip(*(source.read(i) for i in range(COUNT)))
    np.save(directory / 'images.npy', np.stack(pictures))
    for i, (picture, label) in enumerate(zip(pictures, labels)):
        folder = directory / 'folder' / SHAPES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f'{i}.png')
    return np.stack(pictures), np.array(labels), directory / 'images.npy', directory / 'folder'


def normalized(task, pictures):
    data = task.config.data
    return (pictures / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)


def test_logits(classifier, images, tmp_path):
    task, params, workdir = classifier
    output = tmp_path / 'o.npz'
    call(predict, checkpoint=workdir, images=images[2], output=output, batch_size=4)
    written = np.load(output)
    expected = nnx.merge(task.graphdef, params)(normalized(task, images[0]))
    np.testing.assert_allclose(written['logits'], expected, atol=1e-4)
    assert written['paths'].tolist() == [f'images.npy[{i}]' for i in range(COUNT)]
    assert np.all(written['labels'] == -1)


def test_floats_reach_the_model_as_they_are(classifier, tmp_path):
    """Between two bytes; by hand, the same logits bit for bit."""
    _, _, workdir = classifier
    pixels = np.random.default_rng(0).random((8, 20, 20, 3), np.float32)
    np.save(tmp_path / 'f.npy', pixels)
    output = tmp_path / 'o.npz'
    call(predict, checkpoint=workdir, images=tmp_path / 'f.npy', output=output, batch_size=8)
    expected = load_model(str(workdir)).logits(pixels)
    np.testing.assert_array_equal(np.load(output)['logits'], expected)
    rounded = np.rint(pixels * 255).astype(np.uint8)
    assert not np.allclose(load_model(str(workdir)).logits(rounded), expected, atol=1e-4)
    call(attention, checkpoint=workdir, images=tmp_path / 'f.npy', output=tmp_path / 'a.png')


def test_names_that_are_not_unicode(classifier, images, tmp_path, capsys):
    _, _, workdir = classifier
    folder = tmp_path / os.fsdecode(b'caf\xe9') / SHAPES[2]
    folder.mkdir(parents=True)
    Image.fromarray(images[0][0]).save(folder / os.fsdecode(b'\xff.png'))
    shown = rf'{tmp_path}/caf\xe9/{SHAPES[2]}/\xff.png'
    call(predict, checkpoint=workdir, images=tmp_path, output=tmp_path / 'o.npz')
    written = np.load(tmp_path / 'o.npz')
    assert written['paths'].tolist() == [shown] and written['labels'].tolist() == [2]
    call(predict, checkpoint=workdir, images=folder.parent, output=tmp_path / 'o.csv')
    assert next(csv.DictReader((tmp_path / 'o.csv').open()))['image'] == shown
    assert r'\xff.png' in capsys.readouterr().out


def test_table(classifier, images, tmp_path, capsys):
    _, _, workdir = classifier
    call(
        predict,
        checkpoint=workdir,
        images=images[3],
        output=tmp_path / 'o.csv',
        top=3,
        batch_size=4,
    )
    rows = list(csv.DictReader((tmp_path / 'o.csv').open()))
    assert len(rows) == COUNT and all(row['image'].split('/')[-2] == row['label'] for row in rows)
    order = [int(row['image'].split('/')[-1].removesuffix('.png')) for row in rows]
    probabilities = np.asarray(jax.nn.softmax(load_model(str(workdir)).logits(images[0])))[order]
    assert [row['class1'] for row in rows] == [SHAPES[i] for i in probabilities.argmax(-1)]
    third = [float(row['probability3']) for row in rows]
    np.testing.assert_allclose(third, np.sort(probabilities)[:, -3], atol=1e-5)
    accuracy = np.mean([row['class1'] == row['label'] for row in rows])
    assert f'{accuracy:.4f} of the {COUNT} images' in capsys.readouterr().out


def test_pictures_that_cannot_be_read(classifier, images, tmp_path, capsys):
    """Named, left out and counted; or with --strict the end; of `attention` likewise."""
    folder = tmp_path / 'folder'
    shutil.copytree(images[3], folder)
    (folder / 'bad.png').write_bytes(b'no picture')
    given = {'checkpoint': classifier[2], 'images': folder}
    call(predict, **given, output=tmp_path / 'o.csv')
    assert len(list(csv.DictReader((tmp_path / 'o.csv').open()))) == COUNT
    call(attention, **given, output=tmp_path / 'a.png', limit=3)
    assert Image.open(tmp_path / 'a.png').size[1] == TITLE + 3 * (CELL + GAP)
    said = capsys.readouterr()
    assert said.err.count('folder/bad.png cannot be read as an image') == 2
    assert said.out.count(' images (1 that cannot be read left out: see above)') == 2
    for tool in (predict, attention):
        with pytest.raises(RequestError, match=r'folder/bad\.png cannot be read'):
            call(tool, '--strict', **given, output=tmp_path / ('o.csv', 'a.png')[tool is attention])


def test_features_and_tokens(pretrained, images, tmp_path):
    task, params, workdir = pretrained
    model = nnx.merge(task.graphdef, params)
    x = np.asarray(model.encoder(normalized(task, images[0]), every_layer=lambda x_BND: x_BND))
    given, output = {'checkpoint': workdir, 'images': images[2]}, tmp_path / 'o.npz'
    call(predict, **given, what='features', output=output)
    written = np.load(output)
    np.testing.assert_allclose(written['mean'], x[:, :, 1:].mean(2).swapaxes(0, 1), atol=1e-4)
    np.testing.assert_allclose(written['cls'], x[:, :, 0].swapaxes(0, 1), atol=1e-4)
    call(predict, '--layers', -1, 1, **given, what='features', output=output, batch_size=4)
    np.testing.assert_allclose(np.load(output)['cls'], written['cls'][:, [1, 0]], atol=1e-5)
    call(predict, **given, what='tokens', output=output)
    expected = np.argmax(model.head(x[-1][:, 1:]), -1)
    np.testing.assert_array_equal(np.load(output)['tokens'], expected)


def test_attention_weights(pretrained, images):
    """Rows sum to one, and with the values they give what the block adds."""
    task, params, workdir = pretrained
    encoder, loaded = nnx.merge(task.graphdef, params).encoder, load_model(str(workdir))
    before = np.asarray(encoder(normalized(task, images[0]), every_layer=lambda x_BND: x_BND))[0]
    weights = np.asarray(loaded.attention(images[0], 2))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    block = encoder.blocks['01']
    normed = block.norm1(before)
    values = np.asarray(block.attention.value(normed)).reshape(COUNT, 26, 2, 8)
    mixed = np.einsum('bhqs,bshk->bqhk', weights, values).reshape(COUNT, 26, 16)
    added = block.attention(normed, encoder.position_bias(normed.shape[1]))
    np.testing.assert_allclose(block.attention.out(mixed), added, atol=1e-5)


def test_attention_picture(pretrained, images, tmp_path):
    _, _, workdir = pretrained
    which = {'points': '0.1,0.9 0.5,0.5', 'layer': 1, 'head': 2, 'limit': 3}
    output = tmp_path / 'a.png'
    call(attention, checkpoint=workdir, images=images[2], output=output, **which)
    assert Image.open(output).size == (3 * (CELL + GAP) + GAP, TITLE + 3 * (CELL + GAP))
    weights = np.zeros((1, 2, 16, 16), np.float32)  # 3 rows of 5 patches
    # the patch at (0.1, 0.9) looks at row 1, column 4
    weights[0, 1, 1 + 2 * 5 + 0, 1 + 1 * 5 + 4] = 1.0
    maps = attention.attention_maps(weights, (3, 5), [(0.1, 0.9), (0.5, 0.5)], 1)
    assert maps.shape == (1, 2, 3, 5) and maps[0, 0, 1, 4] == 1 and maps.sum() == 1
    mean = attention.attention_maps(weights, (3, 5), [(0.1, 0.9)], None)
    np.testing.assert_allclose(mean, maps[:, :1] / 2)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (predict, ['--what', 'logits'], '--what'),
        (predict, ['--output', 'o.txt'], 'ends in .npz or .csv'),
        (predict, ['--what', 'tokens'], 'needs an --output'),
        (predict, ['--what', 'tokens', '--output', 'o.npz'], 'predicts no tokens'),
        (predict, ['--what', 'features', '--output', 'o.csv'], 'ends in .npz'),
        (predict, ['--images', '/nowhere'], 'no such file'),
        (predict, ['--checkpoint', '/nowhere'], 'no such checkpoint, work directory, file or'),
        (attention, ['--output', 'a.png', '--layer', '3'], 'layers 1 to 2'),
        (predict, ['--layers', '1'], '--layers are of --what=features'),
        (predict, ['--dtype', 'float'], 'Did you mean float32'),
        (
            predict,
            ['--what', 'features', '--output', 'o.npz', '--layers', '1', '0'],
            'no layer 0',
        ),
        (attention, ['--output', 'a.png', '--head', '3'], 'heads 1 to 2'),
        (attention, ['--output', 'a.png', '--points', '0.5'], 'give x,y pairs'),
        (attention, ['--output', 'a.png', '--points', '0.5,1.0'], 'below 1'),
    ],
)
def test_bad_requests(tool, arguments, message, classifier, images):
    with pytest.raises(RequestError, match=message):
        call(tool, '--checkpoint', classifier[2], '--images', images[2], *arguments)


def test_a_tokenizer_is_no_encoder(tokenizer_dir, images, tmp_path):
    given = {'checkpoint': tokenizer_dir, 'images': images[2], 'output': tmp_path / 'o.png'}
    with pytest.raises(RequestError, match='is a tokenizer, not an encoder: give a checkpoint'):
        call(attention, **given)


def test_a_model_without_classes(pretrained, images):
    with pytest.raises(RequestError, match='has no classes: fine-tune it first'):
        call(predict, checkpoint=pretrained[2], images=images[2])


def test_a_model_that_predicts_pixels(images, tmp_path):
    tiny.save_checkpoint(tmp_path, make_task(task_config(tiny.settings('', target='pixels'))))
    given = {'checkpoint': tmp_path, 'images': images[2], 'output': tmp_path / 'o.npz'}
    for what, message in (
        ('tokens', 'predicts no tokens: .* give one that was pre-trained on tokens'),
        ('classes', r'ask for features\.'),
    ):
        with pytest.raises(RequestError, match=message):
            call(predict, **given, what=what)
