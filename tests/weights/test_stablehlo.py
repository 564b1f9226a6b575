"""Models as programs that need JAX alone: in a process that has nothing else they say the same."""

import json

import jax
import numpy as np
import pytest

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import export_weights
from tests import tiny
from tests.tools.call import call

LABELS = tuple(f'kind {i}' for i in range(5))
DATA = {'image_size': (20, 24), 'evaluate_crop': 0.8}  # not square
SETTINGS = {
    'logits': tiny.classify_settings(data=DATA),
    'segment': tiny.segment_settings(data=DATA),
    'tokens': tiny.settings('', target='tokens', data=DATA),
}
# as the card says
PROGRAM = """
import sys
for name in ('beit_jax', 'flax', 'orbax', 'ml_collections', 'safetensors', 'tensorflow', 'torch'):
    sys.modules[name] = None
import jax.export, numpy
folder, images, found = sys.argv[1:4]
images, made = numpy.load(images), {}
for name in sys.argv[4:]:
    program = jax.export.deserialize(bytearray(open(f'{folder}/{name}.stablehlo', 'rb').read()))
    assert program.platforms == ('cpu', 'tpu', 'cuda')
    weights = dict(numpy.load(f'{folder}/weights.npz'))
    for count in (1, len(images)):
        answer = program.call(weights, images[:count])
        answer = answer if isinstance(answer, dict) else {'': answer}
        made |= {f'{name} {key} {count}': array for key, array in answer.items()}
numpy.savez(found, **made)
"""


@pytest.mark.parametrize('name', SETTINGS)
def test_in_a_process_of_its_own(name, tokenizer_dir, tmp_path):
    """To 1e-6, one picture and seven of them; what it is shown is told."""
    settings, classes = SETTINGS[name], () if name == 'tokens' else LABELS
    if name == 'tokens':
        settings = settings | {'tokenizer': {'path': str(tokenizer_dir), 'image_size': (10, 12)}}
    config = task_config(settings)
    task = make_task(config.resolve(37, LABELS) if classes else config)
    tiny.save_checkpoint(tmp_path / 'c', task, classes=classes)
    model, folder = beit_jax.load(tmp_path / 'c'), tmp_path / 'exported'
    model.export(folder, 'stablehlo')
    images = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), np.uint8)
    np.save(tmp_path / 'images.npy', images)
    words = [folder, tmp_path / 'images.npy', tmp_path / 'found.npz', name, 'features']
    done = tiny.run(['-c', PROGRAM, *map(str, words)])
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / 'found.npz')
    for count in (1, 7):
        answer = getattr(model, name)(images[:count])
        np.testing.assert_allclose(found[f'{name}  {count}'], answer, atol=1e-6)
        for pooling, rows in model.features(images[:count]).items():
            np.testing.assert_allclose(found[f'features {pooling} {count}'], rows, atol=1e-6)
    said = json.loads((folder / 'preprocessing.json').read_text())
    assert (said['image_size'], said['interpolation']) == ([20, 24], 'bicubic')
    assert said['crop'] == model.crop == (0.8 if name == 'logits' else 1)
    assert said['mean'] == list(model.architecture['mean']) and said['dtype'] == 'uint8'
    assert said['classes'] == list(model.classes) and said['programs'].keys() == {name, 'features'}
    layers = model.architecture['depth']
    assert said['programs']['features']['cls'] == f'float32[{layers}, batch, 16]'
    assert f'DIR/{name}.stablehlo' in (folder / 'README.md').read_text()


def test_from_any_machine(tmp_path, monkeypatch):
    """Also where a GPU's or a TPU's kernels would be taken: they are of no use elsewhere."""
    task = make_task(task_config(SETTINGS['logits']).resolve(37, LABELS))
    tiny.save_checkpoint(tmp_path / 'c', task)
    given = {'input': tmp_path / 'c', 'dtype': 'bfloat16', 'format': 'stablehlo'}
    made = []
    for platform in ('cpu', 'tpu', 'gpu'):
        with monkeypatch.context() as patch:
            patch.setattr(jax, 'default_backend', lambda platform=platform: platform)
            call(export_weights, **given, output=tmp_path / platform)
        names = (f'{name}.stablehlo' for name in ('logits', 'features'))
        made.append([(tmp_path / platform / name).read_bytes() for name in names])
    assert made[0] == made[1] == made[2]
    said = json.loads((tmp_path / 'cpu' / 'preprocessing.json').read_text())
    assert said['compute_dtype'] == 'bfloat16'
    for changed, message in (
        ({'output': tmp_path / 'cpu'}, 'is there already'),
        ({'format': 'stablehl'}, 'Did you mean stablehlo?'),
        ({'format': 'timm'}, '--dtype is of the programs of stablehlo'),
    ):
        with pytest.raises(RequestError) as error:
            call(export_weights, **given | {'output': tmp_path / 'new'} | changed)
        assert message in str(error.value)
