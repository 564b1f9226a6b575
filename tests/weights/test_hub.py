"""Weights by their name on the hub, from a server on this machine that answers as the hub does
(`tests/hub_server.py`) by way of the real huggingface_hub, and from its cache."""

import json
from pathlib import Path
import shutil
import sys

from huggingface_hub import constants
import jax
import numpy as np
import pytest

import beit_jax
from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import arguments, export_weights, import_weights, inspect_weights
from beit_jax.weights.checkpoint import find_checkpoint
from beit_jax.weights.hub import local, repository
from beit_jax.weights.load import load_weights
from beit_jax.weights.pytorch.files import read_source
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.hub_server import TOKEN, files_of
from tests.tools.call import call

LABELS = tuple(f'kind {i}' for i in range(7))
DIALECTS = ('huggingface', 'timm', 'unilm')
NAME = 'owner/beit'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A folder with a checkpoint in `run` and its export in each dialect."""
    directory = tmp_path_factory.mktemp('exported')
    task = make_task(task_config(tiny.classify_settings()).resolve(37, LABELS))
    tiny.save_checkpoint(directory / 'run', task, classes=LABELS)
    for dialect in DIALECTS:
        call(export_weights, input=directory / 'run', format=dialect, output=directory / dialect)
    return directory


@pytest.fixture(scope='module')
def expected(exported):
    """Its parameters."""
    return load_weights(str(exported / 'run'))[0]


def params_of(path: str):
    return load_weights(path)[0]


def assert_same_params(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(one, other)


def downloaded(hub) -> list[str]:
    return sorted(line.rpartition('/')[2] for line in hub.asked if line.startswith('GET /owner'))


@pytest.mark.parametrize('dialect', DIALECTS)
def test_load(dialect, hub, exported, expected):
    """The numbers of the checkpoint, of the files that are needed; then nothing is asked for but
    whether the branch has moved, and offline nothing at all."""
    stranger = {'tf_model.h5': b'x', 'pytorch_model.bin': b'y', 'onnx/model.onnx': b'z'}
    hub.add(NAME, files_of(exported / dialect) | stranger)
    model = beit_jax.load(NAME)
    assert_same_params(model.params, expected)
    assert model.classes == LABELS and model.path == NAME
    beside = {'huggingface': ['config.json', 'preprocessor_config.json'], 'timm': ['config.json']}
    assert downloaded(hub) == sorted([*beside.get(dialect, []), 'model.safetensors'])
    hub.asked.clear()
    beit_jax.load(f'hf_hub:{NAME}')
    assert set(hub.asked) == {f'GET /api/models/{NAME}/revision/main'}
    constants.HF_HUB_OFFLINE = True
    hub.asked.clear()
    assert_same_params(params_of(NAME), expected)
    assert not hub.asked


def test_revisions_files_and_folders(hub, exported, tmp_path):
    """A branch, a commit of any time, a file and a folder; a folder of that name comes first."""
    old, new = files_of(exported / 'timm'), files_of(exported / 'huggingface')
    sha = hub.add(NAME, old)
    hub.repositories[NAME].refs['v1'] = sha
    hub.add(NAME, new | {f'sub/{name}': data for name, data in old.items()} | {'sub/x.pth': b'x'})
    kind = lambda path: read_source(path).config.get('model_type', 'timm')
    assert kind(NAME) == kind(f'{NAME}@main') == 'beit'
    for path in (f'{NAME}@v1', f'{NAME}@{sha}', f'{NAME}@main:{sha}', f'hf://{NAME}@v1'):
        assert kind(path) == 'timm', path
    assert kind(f'hf://{NAME}/sub') == kind(f'hf://{NAME}/sub/model.safetensors') == 'timm'
    hub.asked.clear()
    assert local(f'hf://{NAME}/sub/x.pth').read_bytes() == b'x' and 'x.pth' in downloaded(hub)
    shutil.copytree(exported / 'run', tmp_path / NAME)
    assert local(NAME) == Path(NAME) and repository(f'hf://{NAME}').id == NAME
    assert find_checkpoint(NAME) and local(f'{NAME}@main') != Path(NAME)


def test_names_of_released_weights(hub, exported):
    """What a repository is called says as much as what a folder is called."""
    name = 'microsoft/beit-base-patch16-224-pt22k'
    hub.add(name, files_of(exported / 'unilm'))
    hub.add('timm/beitv2_base.in1k', files_of(exported / 'unilm'))
    for path in (name, f'{name}@main', f'hf://{name}'):
        assert read_source(path).released.hub == name
    assert read_source('timm/beitv2_base.in1k').name == 'beitv2_base.in1k'


def test_checkpoints_tokenizers_and_shards(hub, exported, expected, tokenizer_dir):
    """Work directories, their newest checkpoint alone, and the rest of what is read here."""
    run = files_of(exported / 'run')
    older = {name.replace('checkpoints/1/', 'checkpoints/0/'): data for name, data in run.items()}
    hub.add('owner/run', older | run)
    assert_same_params(params_of('owner/run'), expected)
    assert not any('checkpoints/0' in line for line in hub.asked)
    hub.add('owner/step', files_of(find_checkpoint(str(exported / 'run'))))
    assert_same_params(params_of('owner/step'), expected)
    hub.add('owner/tokenizer', files_of(tokenizer_dir))
    _, found = load_tokenizer('owner/tokenizer')
    assert_same_params(found, load_tokenizer(str(tokenizer_dir))[1])
    with pytest.raises(RequestError, match='owner/tokenizer is a tokenizer, not an encoder'):
        params_of('owner/tokenizer')
    whole = files_of(exported / 'timm')
    index = {'weight_map': dict.fromkeys(read_source(exported / 'timm').tensors, 'model-1.bin')}
    index['weight_map'] |= dict.fromkeys(index['weight_map'], 'model-1.safetensors')
    shards = {
        'model.safetensors.index.json': json.dumps(index).encode(),
        'model-1.safetensors': whole['model.safetensors'],
        'config.json': whole['config.json'],
        'model-1.bin': b'x',
    }
    hub.add('owner/shards', shards)
    assert_same_params(params_of('owner/shards'), expected)


def test_tools(hub, exported, expected, tmp_path, capsys):
    hub.add(NAME, files_of(exported / 'huggingface'))
    call(inspect_weights, NAME)
    assert f"{NAME}: Hugging Face's names" in capsys.readouterr().out
    call(import_weights, input=NAME, output=tmp_path / 'imported')
    assert_same_params(params_of(str(tmp_path / 'imported')), expected)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('owner/none', 'there is no such .* here, and no model owner/none on .*if it is private'),
        ('owner/private', 'no model owner/private .*`hf auth login`, or a token in HF_TOKEN'),
        ('owner/gated', 'owner/gated is gated: ask for access on .*/owner/gated; then `hf auth lo'),
        (f'{NAME}@v2', f'{NAME} has no revision v2. Did you mean v1. It has main, v1, and commits'),
        (f'{NAME}@{"0" * 40}', f'{NAME} has no revision 000'),
        ('owner/other', r'owner/other holds neither .*It has README.md, tf_model.h5\.$'),
        ('owner/two', r'several files of weights, a.pth, b.pth: .* as hf://owner/two@main/FILE'),
        (f'hf://{NAME}/no.pth', f'{NAME} has no no.pth'),
        ('owner/beit--x', 'owner/beit--x is no name on'),
    ],
)
def test_refused(path, message, hub, exported):
    files = files_of(exported / 'timm')
    hub.add(NAME, files)
    hub.repositories[NAME].refs['v1'] = hub.repositories[NAME].refs['main']
    hub.add('owner/private', files, private=True)
    hub.add('owner/gated', files, gated=True)
    hub.add('owner/other', {'README.md': b'', 'tf_model.h5': b''})
    hub.add('owner/two', {'a.pth': b'', 'b.pth': b''})
    with pytest.raises(RequestError, match=message) as refused:
        params_of(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_token_shows_it(hub, exported, monkeypatch):
    hub.add('owner/private', files_of(exported / 'timm'), private=True)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    params_of('owner/private')
    monkeypatch.setenv('HF_TOKEN', 'hf_of_somebody')
    with pytest.raises(RequestError, match='no model owner/private'):
        params_of('owner/private')


def test_no_network(hub, exported, monkeypatch):
    """Status 74: what was downloaded before is taken where that is asked for; a commit anyway."""
    sha = hub.add(NAME, files_of(exported / 'timm'))
    hub.down = 503
    with pytest.raises(StorageError, match=rf'{NAME}: 127.* answers 503 .*Try again later'):
        params_of(NAME)
    hub.down = 0
    params_of(NAME)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(
        StorageError, match=r'127\.0\.0\.1:9 cannot be reached .*HF_HUB_OFFLINE=1 tak'
    ):
        params_of(NAME)
    with pytest.raises(StorageError, match=r'cannot be reached \([^()]*(\([^()]*\))?[^()]*\)\.$'):
        params_of('owner/other')
    Path('runs').mkdir()
    with pytest.raises(RequestError, match=r'runs/beit: there is no such .* cannot be reached'):
        params_of('runs/beit')
    params_of(f'{NAME}@main:{sha}')
    constants.HF_HUB_OFFLINE = True
    params_of(NAME)
    with pytest.raises(
        RequestError, match=r'owner/other: there is no such .*HF_HUB_OFFLINE is set'
    ):
        params_of('owner/other')


def test_a_cache_by_hand(hub, exported):
    """Offline, laid out as huggingface_hub documents it: refs, and snapshots by commit."""
    place, sha = Path(constants.HF_HUB_CACHE, 'models--owner--beit'), '5' * 40
    (place / 'refs').mkdir(parents=True)
    (place / 'refs' / 'main').write_text(sha)
    shutil.copytree(exported / 'huggingface', place / 'snapshots' / sha)
    constants.HF_HUB_OFFLINE = True
    assert beit_jax.load(NAME).classes == LABELS
    (place / 'snapshots' / sha / 'model.safetensors').unlink()
    with pytest.raises(RequestError, match=f'{NAME} in .*{sha} holds neither a checkpoint'):
        params_of(NAME)


def test_a_cache_that_cannot_be_written(hub, exported, tmp_path):
    hub.add(NAME, files_of(exported / 'timm'))
    (tmp_path / 'cache').write_text('')
    with pytest.raises(RequestError, match=f'{NAME} cannot be written to .*HF_HOME names another'):
        params_of(NAME)


def test_without_the_package(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(RequestError, match=f'{NAME}: there is no .*pip install huggingface_hub'):
        params_of(NAME)
    with pytest.raises(RequestError, match=r'a/b.pth: there is no such .*of weights\.$'):
        params_of('a/b.pth')


@pytest.mark.parametrize('dialect', DIALECTS)
def test_push_and_pull(dialect, hub, exported, expected, monkeypatch, capsys):
    """Bit for bit, with the card; a second time only where that is asked for, and then nothing of
    the other dialect is left."""
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    words = {'input': exported / 'run', 'push-to': 'owner/new'}
    call(export_weights, '--private', format=dialect, **words)
    assert f'-> {hub.url}/owner/new/commit/' in capsys.readouterr().out
    made = hub.repositories['owner/new']
    files = dict(made.commits[made.refs['main']])
    assert made.private and files.pop('.gitattributes') == b''
    card, folder = files.pop('README.md').decode(), files_of(exported / dialect)
    assert 'owner/new' in card and 'beit_jax.load("owner/new")' in card and 'DIR' not in card
    del folder['README.md']
    size = {name: len(data) for name, data in folder.items()}
    assert {name: len(data) for name, data in files.items()} == size
    # of unilm's a zip has the time of day, and a header no order
    assert files == folder or dialect == 'unilm'
    assert_same_params(params_of('owner/new'), expected)
    other = DIALECTS[DIALECTS.index(dialect) - 1]
    with pytest.raises(RequestError, match=r'owner/new has README.md, .* already: --replace write'):
        call(export_weights, format=other, **words)
    call(export_weights, '--replace', format=other, **words)
    assert made.commits[made.refs['main']].keys() - {'.gitattributes'} == {
        *files_of(exported / other)
    }
    assert_same_params(params_of('owner/new'), expected)


@pytest.mark.parametrize(
    ('name', 'token', 'words', 'message'),
    [
        ('owner/new', '', [], r'owner/new: 127.* does not allow it \(.*`hf auth login`'),
        ('other/new', TOKEN, [], r'other/new: .* does not allow it \(no rights'),
        ('owner/mine', TOKEN, ['--private'], 'owner/mine is public'),
        ('owner/mine', '', [], 'owner/mine: .* does not allow it'),
        ('beit', TOKEN, [], 'beit is no name on a hub: give OWNER/NAME'),
    ],
)
def test_push_refused(name, token, words, message, hub, exported, monkeypatch):
    hub.add('owner/mine', {'LICENSE': b'mine'})
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(RequestError, match=message):
        options = {'input': exported / 'run', 'format': 'timm', 'push-to': name}
        call(export_weights, *words, **options)
    made = hub.repositories.get('owner/new')
    assert made is None and len(hub.repositories['owner/mine'].commits) == 1


def test_somebody_else_pushes_meanwhile(hub, exported, monkeypatch):
    from beit_jax.weights.hub import Upload

    monkeypatch.setenv('HF_TOKEN', TOKEN)
    hub.add('owner/mine', {'LICENSE': b'mine'})
    upload = Upload('owner/mine')
    hub.add('owner/mine', {'model.safetensors': b'theirs'})
    with pytest.raises(RequestError, match=r'owner/mine: .* answers 412 \(A commit has happened'):
        upload.push(exported / 'timm')
    assert hub.repositories['owner/mine'].commits[hub.repositories['owner/mine'].refs['main']] == {
        'model.safetensors': b'theirs'
    }


@pytest.mark.parametrize(
    ('path', 'down', 'status'), [(NAME, 0, None), ('owner/none', 0, 2), (NAME, 500, 74)]
)
def test_statuses(path, down, status, hub, exported, monkeypatch, capsys):
    hub.add(NAME, files_of(exported / 'timm'))
    hub.down = down
    monkeypatch.setattr('sys.argv', ['beit inspect', path])
    if status is None:
        arguments.main(inspect_weights.run, inspect_weights._arguments())
        return
    with pytest.raises(SystemExit) as ended:
        arguments.main(inspect_weights.run, inspect_weights._arguments())
    assert ended.value.code == status and capsys.readouterr().err.startswith(f'error: {path}: ')


def test_the_variables_that_people_set(hub, exported, tmp_path):
    """In processes of their own: they are read when huggingface_hub is imported."""
    hub.add(NAME, files_of(exported / 'timm'))
    here = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_OFFLINE': '0'}
    here |= {'HF_HUB_ETAG_TIMEOUT': '100'}
    program = 'from beit_jax.weights.hub import local; print(sorted(local("owner/beit").iterdir()))'
    for changed in ({}, {'HF_HUB_OFFLINE': '1'}):
        done = tiny.run(['-c', program], **here | changed)
        assert done.returncode == 0, done.stderr
        assert f'{tmp_path}/home/hub' in done.stdout and 'README' not in done.stdout
