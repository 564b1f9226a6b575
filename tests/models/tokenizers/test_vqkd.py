"""VQ-KD against PyTorch with the same random weights (`tests.torch_vqkd`), through the released
files' importer: ids equal, features to 1e-4 in float32."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.models.tokenizers import make_tokenizer, vqkd
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import evaluate_tokenizer, import_tokenizer, reconstruct
from beit_jax.train import loop
from beit_jax.weights.load import load_weights
from beit_jax.weights.tokenizer import load_tokenizer, save_tokenizer
from tests import tiny, torch_vqkd
from tests.tools.call import call
from tests.weights.pytorch.forgeries import save

SIZES = {
    'width': 128, 'depth': 3, 'decoder_depth': 2, 'heads': 2, 'hidden': 37, 'vocabulary': 53,
    'code_width': 7, 'features': 11, 'side': 20, 'patch_size': 4,
}  # fmt: skip


@pytest.fixture(scope='module')
def torch_model():
    return torch_vqkd.make(**SIZES)


@pytest.fixture(scope='module')
def released(torch_model, tmp_path_factory):
    """A file as it is released."""
    path = tmp_path_factory.mktemp('released') / 'vqkd_encoder_base_decoder_2x128x2_clip.pth'
    return save(torch_vqkd.official_file(torch_model), path)


@pytest.fixture(scope='module')
def imported(released, tmp_path_factory):
    output = tmp_path_factory.mktemp('vqkd') / 'T'
    call(import_tokenizer, '--input', released, output=output)
    return output


def pictures(count=7, side=20):
    return np.random.default_rng(0).random((count, side, side, 3), np.float32)


def by_torch(model, images):
    """(ids [B, P], features [B, P, F])."""
    with torch.no_grad():
        ids = model.ids(model.vectors(torch.from_numpy(images.transpose(0, 3, 1, 2))))
        return ids.numpy(), model.decode(model.quantize.embedding.weight[ids]).numpy()


def test_released_file(torch_model, imported):
    tokenizer, params = load_tokenizer(str(imported), decoder=True)
    assert (tokenizer.kind, tokenizer.image_size, tokenizer.factor) == ('vqkd', 20, 4)
    assert (tokenizer.resampling, tokenizer.decodes) == ('bicubic', 'features')
    sizes = {name: value for name, value in SIZES.items() if name != 'side'}
    assert tokenizer.config == vqkd.Config(**sizes)
    images = pictures()
    expected, features = by_torch(torch_model, images)
    ids = np.asarray(jax.jit(tokenizer.encode)({'encoder': params['encoder']}, images))
    np.testing.assert_array_equal(ids, expected)
    assert len(np.unique(ids)) > 15 and ids.dtype == np.int32
    decoded = np.asarray(jax.jit(tokenizer.decode)(params, ids))
    assert decoded.shape == (7, 25, 11) and features.std() > 0.1
    np.testing.assert_allclose(decoded, features, atol=1e-4)


def test_the_teacher_is_left_out_aloud(released, tmp_path, capsys):
    call(import_tokenizer, '--input', released, output=tmp_path / 'T')
    printed = capsys.readouterr().out
    assert 'vqkd tokenizer, decoder and encoder' in printed and '20 pixels to 5 x 5' in printed
    assert 'the 2 tensors of the teacher are left out: a tokenizer has none' in printed


def test_without_a_decoder(torch_model, imported, tmp_path):
    """Its encoder alone gives the same ids."""
    state = torch_model.state_dict()
    halves = {name: array for name, array in state.items() if not name.startswith('decode')}
    call(import_tokenizer, '--input', save(halves, tmp_path / 'half.pth'), output=tmp_path / 'T')
    tokenizer, params = load_tokenizer(str(tmp_path / 'T'), decoder=True)
    assert list(params) == ['encoder']
    ids = np.asarray(tokenizer.encode(params, pictures()))
    np.testing.assert_array_equal(ids, by_torch(torch_model, pictures())[0])


def test_pictures_of_another_size(torch_model, imported):
    """Positions are interpolated as torch does it: bicubic, not antialiased, CLS's kept."""
    larger = torch_vqkd.VQKD(**SIZES | {'side': 28})
    state = torch_model.state_dict()
    for half in ('encoder', 'decoder'):
        name = f'{half}.pos_embed'
        places = state[name][:, 1:].transpose(1, 2).unflatten(2, (5, 5))
        places = torch.nn.functional.interpolate(places, (7, 7), mode='bicubic')
        places = places.flatten(2).transpose(1, 2)
        state = state | {name: torch.cat([state[name][:, :1], places], 1)}
    larger.load_state_dict(state)
    expected, features = by_torch(larger, pictures(side=28))
    tokenizer, params = load_tokenizer(str(imported), decoder=True)
    ids = np.asarray(tokenizer.encode(params, pictures(side=28)))
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(tokenizer.decode(params, ids, (7, 7)), features, atol=1e-4)


def test_precisions(imported):
    """float32 out of three products is float32 on a CPU; bfloat16 keeps most ids."""
    description = json.loads((imported / 'tokenizer.json').read_text())
    params = load_tokenizer(str(imported))[1]
    exact, passes, half = (
        make_tokenizer('vqkd', description['architecture'], 20, precision).encode(
            params, pictures(23)
        )
        for precision in ('float32', 'bfloat16_3x', 'bfloat16')
    )
    np.testing.assert_array_equal(exact, passes)
    assert 0.8 < np.mean(np.asarray(exact) == half) < 1


@pytest.mark.once
def test_pretraining_takes_it(imported, tmp_path, capsys):
    """By tokenizer.path like any other, on pictures of the encoder's own size; what draws refuses
    it in a line."""
    data, ends = {'repeat_views': 2, 'num_evaluate_examples': 0}, []
    for name, views in (('W', 0), ('C', 2)):  # the second one reads its last tokens from the cache
        tokenizer = {'path': str(imported), 'cache_views': views}
        config = tiny.settings(imported, total_steps=15, tokenizer=tokenizer, data=data)
        assert loop.train(task_config(config), tmp_path / name) == 0
        ends.append(load_weights(str(tmp_path / name))[0])
    assert 'tokens are computed up to step 10' in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, *ends)
    task = make_task(task_config(config))
    assert task.prepare_views == task.views  # pixels that are not made twice
    assert task.views[0].method == 'bicubic'
    message = 'decodes features: it cannot draw pictures'
    with pytest.raises(RequestError, match=message):
        call(reconstruct, workdir=tmp_path / 'W', images='shapes', output=tmp_path / 'drawn.png')
    options = {'tokenizer': imported, 'data.name': 'shapes', 'limit': 5}
    with pytest.raises(RequestError, match=message):
        call(evaluate_tokenizer, output=tmp_path / 'drawn.png', **options)
    call(evaluate_tokenizer, **options)
    assert 'PSNR none dB' in capsys.readouterr().out


def test_files_that_are_refused(torch_model, released, imported, tmp_path):
    def refused(message, state, **options):
        with pytest.raises(RequestError, match=message):
            path = save(state, tmp_path / 'bad.pth')
            call(import_tokenizer, '--input', path, output=tmp_path / 'T', **options)

    state = torch_model.state_dict()
    codebook = state['quantize.embedding.weight'].clone()
    codebook[3, 5] = float('nan')
    changed = state | {'quantize.embedding.weight': codebook}
    refused('NaN or infinite: encoder/codebook has 1', changed)
    refused('leave --image_size out', state, image_size=28)
    refused(
        "'encoder.norm.weight' is no part of a VQ-KD", state | {'encoder.norm.weight': codebook}
    )
    refused('cls_token has 2 axes, not 3', state | {'encoder.cls_token': codebook})
    refused('1 tensors do not fit', state | {'encode_task_layer.0.bias': codebook[0]})
    for name in ('patch_embed.proj.weight', 'beit.embeddings.patch_embeddings.projection.bias'):
        refused('it is an encoder, not a tokenizer', {name: codebook})
    for path in (released, imported):
        with pytest.raises(RequestError, match=r'is a (VQ-KD )?tokenizer, not an encoder'):
            load_weights(str(path))


def test_numbers_that_are_none(imported, tmp_path):
    """Where they lie, also in a folder that was written here: tokens of them look like others."""
    description = json.loads((imported / 'tokenizer.json').read_text())
    tokenizer, params = load_tokenizer(str(imported), decoder=True)
    save_tokenizer(tmp_path / 'T', 'vqkd', tokenizer.config, description['image_size'], params)
    load_tokenizer(str(tmp_path / 'T'))
    params['encoder']['fc1']['bias'] = np.full_like(params['encoder']['fc1']['bias'], np.inf)
    save_tokenizer(tmp_path / 'T', 'vqkd', tokenizer.config, description['image_size'], params)
    with pytest.raises(RequestError, match='NaN or infinite: encoder/fc1/bias has 128'):
        load_tokenizer(str(tmp_path / 'T'))


def test_a_work_directory_is_no_tokenizer(imported, tmp_path):
    shutil.copytree(imported, tmp_path / 'W' / 'tokenizer')
    with pytest.raises(RequestError, match=f'not a tokenizer: give {tmp_path}/W/tokenizer'):
        load_tokenizer(str(tmp_path / 'W'))
    (tmp_path / 'V' / 'checkpoints' / '1' / 'state').mkdir(parents=True)
    with pytest.raises(RequestError, match=r'not a tokenizer\. Train one'):
        load_tokenizer(str(tmp_path / 'V'))
