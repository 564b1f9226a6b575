"""What the outputs of a classifier are: shares of one, a probability each, or plain numbers, as
transformers tells them apart."""

import csv
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import torch

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.models.architecture import in_words
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import export_weights, predict
from tests import tiny, torch_models
from tests.tools.call import call

pytestmark = pytest.mark.filterwarnings('ignore:.*assumed')  # what a bare file does not tell
SMALL = {'width': 128, 'depth': 1, 'heads': 2, 'hidden': 200, 'side': 64, 'classes': 5}
MULTI, REGRESSION = 'multi_label_classification', 'regression'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    directory = tmp_path_factory.mktemp('pictures')
    for i in range(3):
        side = 64 + 7 * i
        pixels = np.random.default_rng(i).integers(0, 256, (side, 71, 3), np.uint8)
        Image.fromarray(pixels).save(directory / f'{i}.png')
    return directory


def save_problem(directory, problem_type, classes):
    """A classifier of transformers whose config.json says what its outputs are."""
    model = torch_models.make_transformers('layer_bias', **SMALL | {'classes': classes})
    model.config.problem_type = problem_type
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize('problem_type', [MULTI, 'single_label_classification', None])
def test_probabilities_are_those_of_transformers(problem_type, pictures, tmp_path):
    model = save_problem(tmp_path / 'hub', problem_type, 5)
    arguments = {'checkpoint': tmp_path / 'hub', 'images': pictures}
    call(predict, **arguments, output=tmp_path / 'p.csv')
    call(predict, **arguments, output=tmp_path / 'p.npz')
    pipeline = torch_models.transformers.ImageClassificationPipeline
    logits = torch.from_numpy(np.load(tmp_path / 'p.npz')['logits'])
    rows = list(csv.DictReader((tmp_path / 'p.csv').open()))
    for row, logits_C in zip(rows, logits, strict=True):
        wanted = pipeline.postprocess(SimpleNamespace(model=model), {'logits': logits_C[None]})
        for i, one in enumerate(wanted, 1):
            assert row[f'class{i}'] == one['label']
            assert float(row[f'probability{i}']) == pytest.approx(one['score'], abs=1e-6)


@pytest.mark.parametrize(
    'problem_type, classes', [(None, 1), (REGRESSION, 1), (REGRESSION, 5), (MULTI, 1)]
)
def test_weights_that_choose_no_class(problem_type, classes, pictures, tmp_path, capsys):
    """Numbers are given as they are, and no share is made of them; what they are is kept."""
    model = save_problem(tmp_path / 'hub', problem_type, classes)
    wanted = problem_type or REGRESSION
    images = np.random.default_rng(0).random((3, 64, 64, 3), np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2) * 2 - 1)).logits
    # and through each format, back and forth
    for number, dialect in enumerate(('hub', 'huggingface', 'timm', 'unilm')):
        path = tmp_path / dialect
        if number:
            call(export_weights, input=tmp_path / 'hub', format=dialect, output=path)
        found = beit_jax.load(path)
        assert found.problem_type == wanted and wanted in in_words(found.architecture)[0]
        np.testing.assert_allclose(found.logits(images), logits, atol=1e-4)
    back = torch_models.transformers.BeitForImageClassification.from_pretrained(
        tmp_path / 'huggingface'
    )
    assert back.config.num_labels == classes
    assert back.config.problem_type == (
        problem_type if (problem_type, classes) != (REGRESSION, 1) else None
    )
    options = {'checkpoint': tmp_path / 'hub', 'images': pictures}
    if wanted == REGRESSION:
        call(predict, **options, output=tmp_path / 'p.npz')
        call(predict, **options, output=tmp_path / 'p.csv')
        logits = np.load(tmp_path / 'p.npz')['logits']
        head, *rows = csv.reader((tmp_path / 'p.csv').open())
        assert len(head) == 1 + classes
        np.testing.assert_allclose(np.array([row[1:] for row in rows], float), logits, rtol=1e-6)
    else:
        call(predict, **options, output=tmp_path / 'p.csv')


def test_a_head_of_another_problem_is_not_fine_tuned(pictures, tmp_path):
    save_problem(tmp_path / 'hub', MULTI, 2)
    found = beit_jax.load(tmp_path / 'hub')
    settings = tiny.classify_settings(
        model={'patch_size': 16, 'positions': 'layer_bias', 'norm_eps': 1e-12}
        | {name: SMALL[name] for name in ('width', 'depth', 'heads', 'hidden')},
        data={'image_size': 64, 'mean': (0.5,) * 3, 'std': (0.5,) * 3},
    )
    names = found.classes
    for new_head, fresh in ((False, None), (True, ('head/classes',))):
        task = make_task(task_config(settings | {'new_head': new_head}).resolve(37, names))
        adapt = lambda: task.adapt(found.params, found.description, names, 'hub')
        if fresh is None:
            with pytest.raises(RequestError, match=r'is of multi_label_class.*new_head=true'):
                adapt()
        else:
            assert adapt()[1] == fresh


@pytest.mark.parametrize('value', ['softmax', 3, ['regression']])
def test_an_unknown_problem_is_refused(value, tmp_path):
    save_problem(tmp_path, None, 5)
    config = json.loads((tmp_path / 'config.json').read_text()) | {'problem_type': value}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r'problem_type is .*, not one of single_label_'):
        beit_jax.load(tmp_path)


def test_names_above_a_threshold(pictures, tmp_path, capsys):
    """Of several classes those of so high a probability; more than --top are told."""
    save_problem(tmp_path / 'hub', MULTI, 5)
    options = {'checkpoint': tmp_path / 'hub', 'images': pictures}
    call(predict, **options, output=tmp_path / 'all.csv')
    shares = [
        [float(value) for name, value in row.items() if name.startswith('probability')]
        for row in csv.DictReader((tmp_path / 'all.csv').open())
    ]
    least = sorted(share for row in shares for share in row)[8] - 2e-6
    capsys.readouterr()
    call(predict, **options, top=3, threshold=least, output=tmp_path / 'some.csv')
    for row, all_of_it in zip(csv.DictReader((tmp_path / 'some.csv').open()), shares, strict=True):
        named = [float(row[f'probability{i}']) for i in (1, 2, 3) if row[f'probability{i}']]
        assert named == [share for share in all_of_it[:3] if share >= least]
        assert [bool(row[f'class{i}']) for i in (1, 2, 3)] == [i < len(named) for i in range(3)]
    more = sum(sum(share >= least for share in row) > 3 for row in shares)
    assert (f'{more} images have more classes' in capsys.readouterr().out) == bool(more)
    with pytest.raises(RequestError, match=r'--threshold is a probability, from 0 to 1'):
        call(predict, **options, threshold=2)
