"""From a folder of pictures to an encoder, with models so small that a test can afford them."""

import importlib
import json
from pathlib import Path
import re
import shlex

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.overrides import override
from beit_jax.settings.recipes import load_recipe
from beit_jax.studies import stages
from beit_jax.tools import your_images as tool
from beit_jax.train import loop
from tests import tiny
from tests.tools.call import call

RECIPE = """
from beit_jax.settings.overrides import change
from beit_jax.settings.recipes import load_recipe

ENCODER = {'patch_size': 4, 'width': 16, 'depth': 2, 'heads': 2, 'hidden': 24, 'unroll': 2}
TINY = {
    'tokenizer': {
        'data': {'image_size': 10},
        'model': {'groups': 2, 'width': 8, 'decoder_input': 8, 'vocabulary': 17},
    },
    'pretrain': {
        'data': {'image_size': 20}, 'model': ENCODER, 'mask': {'patches': 11, 'min_block': 4}
    },
    'probe': {'data': {'image_size': 20}, 'model': ENCODER},
    'classify': {'data': {'image_size': 20}, 'model': ENCODER},
}


def get_config(arg=''):
    config = load_recipe('configs/your_images.py', arg)
    change(config, TINY[config.task])
    change(config, {'total_steps': 3, 'batch_size': 8, 'optimizer': {'warmup_steps': 1}})
    change(config, {'log_every': 1, 'evaluate_every': 2})
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(RECIPE)
    return path


def write_pictures(folder, count, split='train'):
    folder.mkdir(parents=True)
    source = ShapesSource(count, 23, 'medium', split)
    for i in range(count):
        Image.fromarray(source.read(i).image).save(folder / f'{i} ü.png')


def in_this_process(words) -> int:
    """Runs a command without a new Python."""
    if words[0] == '-m':
        call(importlib.import_module(words[1]), *words[2:])
        return 0
    given = dict(word.removeprefix('--').split('=', 1) for word in words[1:])
    path, _, variant = given.pop('config').partition(':')
    workdir, config = Path(given.pop('workdir')), load_recipe(path, variant)
    for key, value in given.items():
        override(config, key.removeprefix('config.'), value)
    return loop.train(task_config(config), workdir)


@pytest.fixture
def ran(monkeypatch, one_device):
    """The commands that the stages run, in this process."""
    commands = []
    monkeypatch.chdir(tiny.REPOSITORY)
    run = lambda words: commands.append(words) or in_this_process(words)
    monkeypatch.setattr(stages, '_status', run)
    return commands


def typed_next(said: str) -> list[list[str]]:
    """Words of the commands that are printed at the end, after `python`."""
    lines = said.partition('What you may do next:')[2].splitlines()[2::2]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.once
def test_from_a_folder_to_an_encoder(recipe, ran, tmp_path, capsys):
    """Eight commands, and those that are printed at the end; started again, none."""
    for name in ('b', 'a'):
        write_pictures(tmp_path / 'my pictures' / name, 23)
    given = {'data.path': tmp_path / 'my pictures', 'workdir': tmp_path / 'w', 'recipe': recipe}
    call(tool, **given)
    said = capsys.readouterr().out
    assert '44 pictures in 2 folders to train on, 2 held out. Fewer than 2,000 are a demo' in said
    assert len(ran) == 8 and 'pictures=44' in ran[0][1]
    drawn = {path.stem for path in (tmp_path / 'w' / 'pictures').iterdir()}
    assert drawn == {'tokenizer_curves', 'pretrain_curves', 'reconstructions', 'neighbours'}
    (right,) = re.findall(r'linear: (.*)% of held-out pictures; random weights (.*)%', said)
    for score, probe in zip(right, ('probe', 'probe_random')):
        table = json.loads((tmp_path / 'w' / probe / 'probe.json').read_text())
        best = max(max(table[f'linear {kind}']) for kind in ('cls', 'mean', 'both'))
        assert float(score) == pytest.approx(100 * best, abs=0.05)
    finetune, export, embed = typed_next(said)
    for words in (finetune, export, embed):
        assert in_this_process(words) == 0
    assert (tmp_path / 'w' / 'exported' / 'model.safetensors').is_file()
    assert len(np.load(tmp_path / 'w' / 'features.npz')['paths']) == 46
    call(tool, **given)
    assert len(ran) == 8 and capsys.readouterr().out.count('done before') == 8


@pytest.mark.once
def test_parts_of_a_set_and_no_classes(recipe, ran, tmp_path, capsys):
    """The test pictures are held out; no probe; fine-tuning takes labelled pictures."""
    for part, count in (('train', 29), ('test', 7)):
        write_pictures(tmp_path / 'photos' / part, count, part)
    call(tool, **{'data.path': tmp_path / 'photos', 'workdir': tmp_path / 'w', 'recipe': recipe})
    said, photos = capsys.readouterr().out, tmp_path / 'photos'
    assert f'holds test, train, which are parts of a set: {photos}/train is trained on, ' in said
    assert '29 pictures to train on, 7 held out' in said
    assert len(ran) == 6 and not (tmp_path / 'w' / 'probe').exists()
    finetune, *others = typed_next(said)
    assert '--config.data.path=LABELLED' in finetune
    write_pictures(tmp_path / 'labelled' / 'a', 23)
    write_pictures(tmp_path / 'labelled' / 'b', 23)
    labelled = [word.replace('LABELLED', f'{tmp_path}/labelled') for word in finetune]
    for words in (labelled, *others):
        assert in_this_process(words) == 0


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'size': 'huge'}, "--size='huge' is unknown"),
        ({'data.path': ''}, r'give --data.path=DIR \(make your-images DATA=DIR\)'),
        ({'data.path': 'nowhere'}, "config.data.path='nowhere' does not exist"),
        ({'data.path': 'docs'}, r'docs/?.* holds one picture|too few'),
        ({'data.holdout': 1.5}, 'config.data.holdout is 1.5'),
        ({'workdir': 'mine/w'}, 'lies in .*mine, which is read'),
    ],
    ids=str,
)
def test_bad_requests(given, message, ran, tmp_path):
    write_pictures(tmp_path / 'mine', 3)
    write_pictures(tmp_path / 'docs', 1)
    for key in ('data.path', 'workdir'):
        if given.get(key) in ('docs', 'mine/w'):
            given = {key: tmp_path / given[key]}
    with pytest.raises(RequestError, match=message):
        call(tool, **{'data.path': tmp_path / 'mine', 'workdir': tmp_path / 'w'} | given)
    assert not ran


@pytest.mark.once
def test_large_pictures_are_copied_first(recipe, ran, tmp_path, capsys):
    """Every stage reads the copies, also of what is held out."""
    rng = np.random.default_rng(0)
    for part, count in (('train', 13), ('val', 7)):
        for i in range(count):
            folder = tmp_path / 'photos' / part / 'ab'[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (67, 71, 3), np.uint8)).save(folder / f'{i}.png')
    given = {'data.path': tmp_path / 'photos', 'workdir': tmp_path / 'w', 'recipe': recipe}
    call(tool, **given)
    said, copies = capsys.readouterr().out, tmp_path / 'w' / 'copies'
    assert f'small copies of {tmp_path}/photos/train, 40 pixels' in said and len(ran) == 10
    for name, count in (('path', 13), ('evaluate_path', 7)):
        files = list((copies / name).glob('?/*.jpg'))
        assert len(files) == count
        with Image.open(files[0]) as copy:
            assert copy.size == (42, 40)
    trained = [words for words in ran if words[0] == 'main.py']
    for words in trained:
        assert f'--config.data.path={copies}/path' in words
        assert f'--config.data.evaluate_path={copies}/evaluate_path' in words
    assert not any('photos' in word for words in trained for word in words)
