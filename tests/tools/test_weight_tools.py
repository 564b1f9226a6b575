"""import_weights, export_weights, inspect_weights and beit_jax.load as a person uses them."""

import csv
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import torch

import beit_jax
from beit_jax.data.pictures import decode_simd
from beit_jax.data.pictures.boxes import whole_box
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import export_weights, inspect_weights
from beit_jax.train import loop
from beit_jax.train import state as states
from beit_jax.train.workdir.checkpoint import Checkpoints
from tests import photos, tiny, torch_models
from tests.tools.call import call

LABELS = ('flower', 'temple')
pytestmark = [
    pytest.mark.usefixtures('one_device'),
    pytest.mark.filterwarnings('ignore:.*assumed'),  # what a bare file does not tell
]
SMALL = {'width': 128, 'depth': 1, 'heads': 2, 'hidden': 200, 'side': 64, 'classes': 5}
VISION = {
    'image_size': 64,
    'crop_scale': (0.9, 1.0),
    'evaluate_crop': 224 / 256,
    'color_jitter': (0.0, 0.0, 0.0),
}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Eight photographs of different sizes in folders of two made-up classes."""
    directory = tmp_path_factory.mktemp('photos')
    for i, path in enumerate(photos.write_photos(directory / 'all')):
        folder = directory / 'classes' / LABELS[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    return directory / 'classes'


@pytest.fixture(scope='module')
def finetuned(pictures, tmp_path_factory):
    """A work directory: a small encoder fine-tuned on the photographs until it knows them."""
    workdir = tmp_path_factory.mktemp('finetuned')
    folders = {'path': str(pictures), 'evaluate_path': str(pictures)}
    settings = tiny.classify_settings(
        **dict.fromkeys(('total_steps', 'save_every', 'evaluate_every', 'log_every'), 60),
        label_smoothing=0.0,
        erase=0.0,
        head_scale=1.0,
        mix={'mixup': 0.0, 'cutmix': 0.0},
        data={'name': 'folder', **folders, **VISION},
        model={'patch_size': 16, 'positions': 'layer_bias', 'drop_path': 0.0},
        optimizer={'lr': 3e-3, 'warmup_steps': 5},
    )
    assert loop.train(task_config(settings), workdir) == 0
    return workdir


def test_transformers_says_the_same_of_photographs(finetuned, pictures, tmp_path):
    """Exported, evaluated there with the exported processor: the same class on every picture."""
    exported, transformers = tmp_path / 'exported', torch_models.transformers
    call(export_weights, input=finetuned, format='huggingface', output=exported)
    paths = sorted(pictures.rglob('*.*'))
    ours = beit_jax.load(finetuned)
    probabilities = np.asarray(jax.nn.softmax(ours.logits(ours.preprocess(paths))))
    processor = transformers.AutoImageProcessor.from_pretrained(exported)
    theirs = transformers.BeitForImageClassification.from_pretrained(exported).eval()
    images = [Image.open(path) for path in paths]
    with torch.no_grad():
        expected = theirs(**processor(images, return_tensors='pt')).logits.softmax(-1).numpy()
    print(
        f'largest difference of a probability: {np.abs(probabilities - expected).max():.4f} (two '
        'resamplings: ours takes the central square out of the picture in one step, theirs resizes '
        'the whole picture to whole pixels and cuts then)'
    )
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert len(set(probabilities.argmax(-1))) == 2
    np.testing.assert_array_equal(probabilities.argmax(-1), expected.argmax(-1))
    assert np.abs(probabilities - expected).max() < 0.05
    mean, std = (np.float32(ours.architecture[name]) for name in ('mean', 'std'))
    pixels = ((ours.preprocess(paths) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():  # on the same pixels there is no difference
        np.testing.assert_allclose(
            theirs(torch.from_numpy(pixels)).logits.softmax(-1), probabilities, atol=1e-5
        )


def test_the_card(finetuned, tmp_path):
    exported = tmp_path / 'exported'
    call(export_weights, input=finetuned, format='unilm', output=exported)
    card = (exported / 'README.md').read_text()
    row = json.loads((finetuned / 'metrics.jsonl').read_text().splitlines()[-1])
    assert f'| `accuracy` | {row["eval/accuracy"]:.6g} |' in card
    assert 'Task `classify`, seed 0, batch 8, 60 steps' in card
    # places on this machine are nobody else's business
    assert str(finetuned) not in card and '"path"' not in card
    for name in ('model.safetensors', 'model.pth'):
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() in card
    back = beit_jax.load(exported / 'model.safetensors')
    assert back.classes == LABELS and back.crop == 224 / 256
    assert not [note for note in back.notes if 'pixels' in note]
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(back.logits(images), beit_jax.load(finetuned).logits(images))


PROGRAM = """
import sys
for name in ('torch', 'timm', 'transformers', 'tensorflow', 'ml_collections'):
    sys.modules[name] = None
from beit_jax.tools import export_weights, import_weights, inspect_weights
from tests.tools.call import call
source, directory = sys.argv[1:]
call(inspect_weights, source)
call(import_weights, input=source, output=f'{directory}/ours')
for form in ('huggingface', 'timm', 'unilm'):
    call(export_weights, input=f'{directory}/ours', format=form, output=f'{directory}/{form}')
"""


@pytest.mark.parametrize('vocabulary', [0, 101])
def test_without_torch(vocabulary, tmp_path):
    kind = {
        'width': 128,
        'depth': 2,
        'heads': 2,
        'hidden': 200,
        'side': 80,
        'positions': 'shared_bias',
        'vocabulary': vocabulary,
    }
    model = torch_models.make_timm(**kind)
    torch.save({'model': model.state_dict()}, tmp_path / 'beit.pth')
    done = tiny.run(['-c', PROGRAM, str(tmp_path / 'beit.pth'), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    for form in ('huggingface', 'timm', 'unilm'):
        assert (tmp_path / form / 'model.safetensors').stat().st_size > 4 * 330_000
    left_out = 'timm has no masked image model: mask token and token head are left out'
    assert (left_out in done.stdout) == bool(vocabulary)
    assert ('predicts 101 tokens' in done.stdout) == bool(vocabulary)
    if vocabulary:  # what is left of it gives the same features
        back = torch_models.timm.create_model(f'local-dir:{tmp_path}/timm', pretrained=True).eval()
        images = np.random.default_rng(0).random((2, 80, 80, 3), np.float32)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) * 2 - 1)
        both = {'return_prefix_tokens': True, 'intermediates_only': True}
        with torch.no_grad():
            expected = back.forward_intermediates(pixels, indices=[0, 1], **both)
        features = beit_jax.load(tmp_path / 'ours').features(images, layers=(1, -1), patches=True)
        for layer, (patches_BDhw, cls_B1D) in enumerate(expected):
            for name, theirs in (
                ('patches', patches_BDhw.permute(0, 2, 3, 1)),
                ('cls', cls_B1D[:, 0]),
                ('mean', patches_BDhw.mean((2, 3))),
            ):
                np.testing.assert_allclose(features[name][layer], theirs, atol=1e-4)


def test_a_file_of_pretraining_is_fine_tuned(tmp_path):
    """--config.init takes the .pth itself; the log says what became of the shared table."""
    kind = {
        'width': 16,
        'depth': 2,
        'heads': 2,
        'hidden': 24,
        'side': 20,
        'patch_size': 4,
        'positions': 'shared_bias',
        'vocabulary': 17,
    }
    torch.save({'model': torch_models.make_timm(**kind).state_dict()}, tmp_path / 'beit.pth')
    changed = {'init': tmp_path / 'beit.pth', 'total_steps': 2, 'compute_dtype': 'float32'}
    done = tiny.run(tiny.classify_arguments(tmp_path / 'run', **changed))
    assert done.returncode == 0, done.stderr
    assert 'each layer starts with the relative position bias that the layers shared' in done.stdout
    assert 'mean and std 0.5 are assumed' in done.stdout
    assert len((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()) >= 2


def test_inspect(finetuned, tmp_path, capsys):
    call(inspect_weights, finetuned)
    assert 'a checkpoint of this package' in capsys.readouterr().out
    state = torch_models.make_timm('layer_bias', **SMALL).half().state_dict()
    path = tmp_path / 'beit_base_patch16_224_pt22k_ft22kto1k.pth'
    torch.save({'model': state}, path)
    call(inspect_weights, path)
    out = capsys.readouterr().out
    for text in (
        "timm's names, 217,",
        'tensors of float16',
        'classifier of 5 classes',
        'size of its own: width 128, 1 blocks, 2 heads, MLP 200',
        'pictures of 64 x 64 pixels, 4 x 4 patches of 16',
        'BEiT-base at 224 pixels, 1000 classes; published top-1 on ImageNet-1k 85.2 %',
    ):
        assert text in out, (text, out)
    del state['head.bias']
    torch.save(state, tmp_path / 'broken.pth')
    with pytest.raises(RequestError, match=r'1 thing is wrong:\n  missing: head.bias \[5\]'):
        call(inspect_weights, tmp_path / 'broken.pth')


def test_load(finetuned, pictures, monkeypatch):
    """Pictures of any size and mode; refusals of what would be silently wrong."""
    model = beit_jax.load(finetuned)
    paths = sorted(pictures.rglob('*.*'))
    grey = Image.fromarray(np.arange(80 * 70, dtype=np.uint8).reshape(70, 80))
    images = model.preprocess([paths[0], str(paths[1]), Image.open(paths[2]), grey])
    assert images.shape == (4, 64, 64, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[2], model.preprocess([paths[2]])[0])
    monkeypatch.setenv('HOME', str(pictures))
    home = f'~/{paths[2].relative_to(pictures)}'
    np.testing.assert_array_equal(images[2], model.preprocess([home])[0])
    logits = model.logits(images)
    np.testing.assert_allclose(model.logits(images / np.float32(255)), logits, atol=1e-5)
    rough = beit_jax.load(finetuned, dtype='bfloat16')
    np.testing.assert_allclose(rough.logits(images), logits, atol=0.5)
    for kind in (jnp.bfloat16, jnp.dtype('bfloat16')):
        assert beit_jax.load(finetuned, dtype=kind).dtype == 'bfloat16'
    for kind in (jnp.float32, np.float32, np.dtype('float32')):
        assert beit_jax.load(finetuned, dtype=kind).dtype == 'float32'
    every, last = model.features(images), model.features(images, layers=(-1,))
    np.testing.assert_array_equal(every['mean'][1:], last['mean'])
    np.testing.assert_array_equal(every['cls'][:1], model.features(images, [np.int64(1)])['cls'])
    assert every['cls'].shape == (2, 4, 16)
    assert model.features(images, patches=True)['patches'].shape == (2, 4, 4, 4, 16)
    for wrong, message in (
        (lambda: model.preprocess(paths[0]), 'give a list'),
        (lambda: model.preprocess([]), 'give a list'),
        (lambda: model.logits(images[:, :60]), r'shape \(4, 60, 64, 3\)'),
        (lambda: model.logits(images[0]), 'this model takes'),
        (lambda: model.logits(images.astype(np.float32)), 'images from 0 to 255: give uint8'),
        (lambda: model.logits(images.astype(np.int32)), 'type int32'),
        (lambda: model.logits(images[:0]), r'shape \(0, 64, 64, 3\)'),
        (lambda: model.logits([images[0], images[1][:60]]), 'images are a list: this model takes'),
        (
            lambda: model.features(images, layers=(3,)),
            'there is no layer 3: this encoder has layers 1 to 2, or from the last one, -1, to -2',
        ),
        (lambda: model.features(images, layers=(0,)), 'there is no layer 0: this encoder has'),
        (lambda: model.features(images, layers=()), 'give a list of layers'),
        (lambda: model.features(images, layers=1), 'give a list of'),
        (lambda: model.attention(images, -3), 'there is no layer -3'),
        (lambda: model.preprocess([images[0]]), 'give a list of Pillow images'),
        (lambda: beit_jax.load(finetuned, dtype='float31'), 'Did you mean float32'),
        (lambda: beit_jax.load(finetuned, dtype=np.float64), "dtype='float64' is unknown"),
        (lambda: model.tokens(images), 'predicts no tokens'),
        (lambda: beit_jax.load('/nowhere'), 'no such'),
    ):
        with pytest.raises(RequestError, match=message):
            wrong()


def test_load_sees_16_bits_as_training_does(finetuned, tmp_path):
    """Of a path and of Pillow's modes I;16 and I; a mode whose range nobody knows is refused."""
    model, path = beit_jax.load(finetuned), tmp_path / 'deep.png'
    values = np.random.default_rng(0).integers(0, 65536, (64, 64), np.uint16)
    image = Image.fromarray(values)
    image.save(path)
    trained = decode_simd.decode_crop(path.read_bytes(), whole_box)
    assert np.ptp(trained) > 200
    expected = model.preprocess([Image.fromarray(trained)])
    for given in (path, image, Image.open(path), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(model.preprocess([given]), expected)
    with pytest.raises(RequestError, match=r"mode F has values of no known range: make it 'L'"):
        model.preprocess([Image.fromarray(values.astype(np.float32))])


def test_older_checkpoints(tmp_path):
    """A description from before there was an entry for the eps of the norms."""
    task = make_task(task_config(tiny.classify_settings()).resolve(37, LABELS))
    newer = ('norm_eps', 'crop')
    architecture = {name: value for name, value in task.describe().items() if name not in newer}
    description = {'task': 'classify', 'architecture': architecture, 'classes': LABELS}
    checkpoints = Checkpoints(tmp_path / 'old')
    checkpoints.save({'params': states.initial_params(task, 0)}, 1, description)
    checkpoints.close()
    (tmp_path / 'old' / 'metrics.jsonl').write_text(
        '{"step": 1, "eval/accuracy": 0.5, "eval/loss": null}\n{"step": 1, "eval/to'
    )
    call(export_weights, input=tmp_path / 'old', format='huggingface', output=tmp_path / 'new')
    assert json.loads((tmp_path / 'new' / 'config.json').read_text())['layer_norm_eps'] == 1e-6
    assert '| `accuracy` | 0.5 |' in (tmp_path / 'new' / 'README.md').read_text()
    # as the trainer of transformers may leave them
    (tmp_path / 'new' / 'checkpoints' / '5').mkdir(parents=True)
    assert beit_jax.load(tmp_path / 'new').classes == LABELS


@pytest.mark.parametrize('dialect', ['huggingface', 'timm', 'unilm'])
def test_a_model_that_predicts_pixels(dialect, tmp_path, capsys):
    """Nobody else has its head: the encoder is exported without, and gives the same features."""
    settings = tiny.settings('', target='pixels', model={'positions': 'absolute'})
    tiny.save_checkpoint(tmp_path / 'pixels', make_task(task_config(settings)))
    call(export_weights, input=tmp_path / 'pixels', format=dialect, output=tmp_path / 'exported')
    note = f'{dialect} has no model that predicts pixels: mask token and pixel head are left out'
    assert note in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    ours, back = (
        beit_jax.load(tmp_path / name).features(images) for name in ('pixels', 'exported')
    )
    for name, expected in ours.items():
        np.testing.assert_allclose(back[name], expected, atol=1e-5)


def test_predict_reads_foreign_weights(pictures, tmp_path):
    torch_models.make_transformers('layer_bias', **SMALL).save_pretrained(tmp_path / 'hub')
    given = [f'--checkpoint={tmp_path}/hub', f'--images={pictures}', f'--output={tmp_path}/p.csv']
    done = tiny.run(['-m', 'beit_jax.tools.predict', *given])
    assert done.returncode == 0 and 'mean and std 0.5 are assumed' in done.stderr, done.stderr
    found = {row['class1'] for row in csv.DictReader((tmp_path / 'p.csv').open())}
    assert found <= {f'kind {i}' for i in range(5)}
