"""BEiT v2's pre-training of CLS: against PyTorch (`OfficialClsModel`), its files in and out, its
loss against NumPy, and what becomes of its blocks afterwards."""

import dataclasses
import math

from flax import nnx
import jax
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
import torch

from beit_jax.errors import RequestError
from beit_jax.models.architecture import build, in_words
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import export_weights
from beit_jax.train import loop
from beit_jax.train.optimizer import parameter_table
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.load import load_weights
from beit_jax.weights.trees import check_params
from tests import tiny, torch_models
from tests.tools.call import call

VOCABULARY, SIDE, PATCHES = 31, 35, 25
CLS_HEAD = {'layers': 2, 'early': 2}
MODEL = {'depth': 4, 'unroll': 1}  # one block to compile


def make_torch(shared: bool):
    sizes = torch_models.timm_sizes('shared_bias', 128, 5, 2, 37, SIDE, 7, 0.1)
    return torch_models.randomize(torch_models.OfficialClsModel(VOCABULARY, 2, 2, shared, **sizes))


@pytest.fixture(scope='module', params=[True, False], ids=['shared', 'own'])
def official(request, tmp_path_factory):
    """(the model, its file as it is released)."""
    model = torch_models.keep_indices(make_torch(request.param))
    path = tmp_path_factory.mktemp('official') / 'beitv2_base_patch16_224_pt1k.pth'
    torch.save({'model': model.state_dict()}, path)
    return model, path


def inputs():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    mask, targets = rng.random((3, PATCHES)) < 0.4, rng.integers(0, VOCABULARY, (3, PATCHES))
    return images, mask, targets


@pytest.mark.parametrize('unroll', [1, 5])
def test_both_heads_against_torch(unroll, official):
    """Logits to 1e-4, gradients of the sum of both cross-entropies to 1e-4 of the largest."""
    model, path = official
    params, description = load_weights(str(path))
    architecture = description['architecture'] | {'unroll': unroll}
    assert architecture['cls_head'] == {'layers': 2, 'early': 2, 'shared': model.shared}
    assert architecture['mean'] == [0.485, 0.456, 0.406]
    assert any('those of block 2 are assumed' in note for note in description['notes'])
    assert 'CLS by 2 more blocks on the patches of block 2' in in_words(architecture)[0]
    images, mask, targets = inputs()
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(architecture, rngs=nnx.Rngs(0))))
    every = np.broadcast_to(np.arange(PATCHES), mask.shape)

    def loss(params):
        both = nnx.merge(graphdef, params).both(images, mask, every)
        losses = optax.softmax_cross_entropy_with_integer_labels
        return sum(losses(logits, targets)[mask].mean() for logits in both), both

    (_, both), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(mask))
    for found, wanted in zip(both, expected):
        assert wanted.std() > 0.1
        np.testing.assert_allclose(found, wanted.detach(), atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.1
    labels = torch.from_numpy(targets)[mask]
    model.zero_grad()
    sum(torch.nn.functional.cross_entropy(each[mask], labels) for each in expected).backward()
    state = {name: value.grad for name, value in model.named_parameters()}
    buffers = {name: value for name, value in model.named_buffers() if 'index' in name}
    torch.save({'model': state | buffers}, path.with_name('gradients.pth'))
    wanted, _ = load_weights(str(path.with_name('gradients.pth')))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-4 * largest),
        gradients,
        wanted,
    )
    assert np.abs(wanted['cls_head']['layers']['01']['mlp']['fc1']['kernel']).max() > 1e-4


@pytest.mark.filterwarnings('ignore:.*(assumed|left out)')
def test_files_in_and_out(official, tmp_path, capsys):
    """Bit for bit, by the official names, for the official model strictly; other libraries do not
    have the blocks, and it is said."""
    model, path = official
    call(export_weights, input=path, format='unilm', output=tmp_path / 'unilm')
    back = torch.load(tmp_path / 'unilm' / 'model.pth', weights_only=True)['model']
    assert back.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name
    torch_models.keep_indices(make_torch(model.shared)).load_state_dict(back)
    params, description = load_weights(str(tmp_path / 'unilm'))
    assert not any('assumed, as in the' in note for note in description['notes'])
    jax.tree.map(np.testing.assert_array_equal, params, load_weights(str(path))[0])
    for dialect in ('timm', 'huggingface'):
        call(export_weights, input=path, format=dialect, output=tmp_path / dialect)
        assert f'{dialect} has no blocks that pre-train CLS' in capsys.readouterr().out
        assert 'cls_head' not in load_weights(str(tmp_path / dialect))[0]


def test_fine_tuning_from_a_released_file(official):
    """It gets the whole encoder, and says what it leaves out."""
    params, description = load_weights(str(official[1]))
    names = ('width', 'depth', 'heads', 'hidden', 'patch_size')
    model = {name: description['architecture'][name] for name in names} | {'unroll': 5}
    config = tiny.classify_settings(model=model, data={'image_size': SIDE})
    task = make_task(task_config(config).resolve(37, ('ant', 'bee')))
    kept, fresh, notes = task.adapt(params, description, ('ant', 'bee'), 'F')
    check_params(nnx.to_pure_dict(task.abstract)['encoder'], kept['encoder'], 'F')
    assert (set(kept), fresh) == ({'encoder'}, ('head',))
    assert 'the 2 blocks of F that pre-train CLS are left out' in notes


def test_drop_path_of_their_depth():
    """Rates of the linear scale at blocks early + i, drawn apart from those of the encoder: z-tests
    with together a false alarm in 10,000 new seeds (the seed is fixed)."""
    encoder = nnx.eval_shape(
        lambda: Encoder(EncoderConfig(width=8, depth=5, heads=1, hidden=7, drop_path=0.4), (2, 2),
                        rngs=nnx.Rngs(0))
    )  # fmt: skip
    drawn, blocks = [], encoder._run_blocks
    keys = jax.random.split(jax.random.key(0), 20_011)

    def run_blocks(x_BND, bias_HNN, keep_L2B, every_layer=None, which=slice(None), blocks=None):
        drawn.append(np.asarray(keep_L2B[which]))
        return x_BND

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Encoder, '_run_blocks', lambda self, *given, **named: run_blocks(*given, **named)
        )
        patch.setattr(Encoder, '_embed', lambda *_: (np.zeros((20_011, 5, 8), np.float32), None))
        encoder.with_early(None, None, 3, {'00': None, '01': None}, keys_B=keys)
    assert blocks and [len(keep) for keep in drawn] == [3, 2, 2]
    for keep, rate in zip(drawn[2], (0.3, 0.4)):
        dropped = (keep == 0).mean(axis=1)
        np.testing.assert_allclose(keep[keep > 0], 1 / (1 - rate), rtol=1e-6)
        z = (dropped - rate) / math.sqrt(rate * (1 - rate) / len(keys))
        assert 2 * scipy.stats.norm.sf(np.abs(z)).min() > 1e-4 / 8
    for row, more in zip(drawn[1].reshape(4, -1), drawn[2].reshape(4, -1)):
        correlation = np.corrcoef(row > 0, more > 0)[0, 1] * math.sqrt(len(keys))
        assert 2 * scipy.stats.norm.sf(abs(correlation)) > 1e-4 / 8


def settings(tokenizer_dir, **changed):
    return tiny.settings(tokenizer_dir, **{'cls_head': CLS_HEAD, 'model': MODEL} | changed)


@pytest.fixture(scope='module')
def task(tokenizer_dir):
    return make_task(task_config(settings(tokenizer_dir)))


def test_initial_weights_are_those_of_their_depth(task):
    table = parameter_table(task.abstract, 1.0).splitlines()
    rows = {line.split()[0]: line for line in table}
    for i, layer in enumerate((3, 4)):
        for name in ('attention/out', 'mlp/fc2'):
            row = rows[f'cls_head/layers/{i:02d}/{name}/kernel']
            assert f'/ {math.sqrt(2 * layer):.6f}' in row and row.endswith('decay  1')
            like = rows[f'encoder/blocks/{layer - 1:02d}/{name}/kernel']
            assert row.split()[1:] == like.split()[1:]
    assert not any(name.startswith('cls_head/head') for name in rows)


def test_the_loss_is_the_sum_of_both(task):
    """Computed again in NumPy from the logits."""
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2,
        nnx.to_pure_dict(task.abstract),
    )
    batch = {
        'image': rng.integers(0, 256, (7, 20, 20, 3), np.uint8),
        'tokens': rng.integers(0, 17, (7, 25)).astype(np.uint16),
        'valid': np.array([1, 1, 0, 1, 1, 1, 1], np.float32),
        'view': np.arange(7, dtype=np.uint32),
    }
    keys = jax.random.split(jax.random.key(0), 7)
    loss, sums = task.loss(params, batch, keys, progress=0.0, train=False)
    mask, slots, weights = task.draw_masks(jax.vmap(lambda key: jax.random.split(key)[0])(keys))
    data = task.config.data
    pixels = ((batch['image'] / 255 - data.mean) / data.std).astype(np.float32)
    model, used = nnx.merge(task.graphdef, params), np.asarray(weights) * batch['valid'][:, None]
    tokens, found = np.take_along_axis(batch['tokens'], np.asarray(slots), 1), {}
    both = model.both(pixels, mask, slots)
    np.testing.assert_allclose(both[0], model(pixels, mask, slots), atol=1e-5)
    for name, logits in zip(('patches', 'cls'), both):
        chosen = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
        losses = -np.take_along_axis(chosen, tokens[..., None].astype(int), -1)[..., 0]
        found[name] = (losses * used).sum()
        found[f'{name}_right'] = ((chosen.argmax(-1) == tokens) * used).sum() / used.sum()
    assert float(loss) == pytest.approx(found['patches'] + found['cls'], rel=1e-5)
    metrics = task.summarize(sums)
    assert float(metrics['loss']) == pytest.approx(float(loss) / used.sum(), rel=1e-5)
    assert float(metrics['cls_loss']) == pytest.approx(found['cls'] / used.sum(), rel=1e-5)
    assert float(metrics['token_accuracy']) == pytest.approx(found['patches_right'])
    assert float(metrics['cls_token_accuracy']) == pytest.approx(found['cls_right'])


def test_without_it_nothing_is_new(tokenizer_dir):
    task = make_task(task_config(tiny.settings(tokenizer_dir)))
    assert set(nnx.to_pure_dict(task.abstract)) == {'encoder', 'head'}
    assert 'cls_head' not in task.describe()


@pytest.mark.once
@pytest.mark.usefixtures('one_device')
def test_what_becomes_of_the_blocks(tokenizer_dir, tmp_path, capsys):
    """They are saved and go on in a pre-training with them; elsewhere they are left out aloud."""
    config = task_config(settings(tokenizer_dir, total_steps=2))
    assert loop.train(config, tmp_path / 'W') == 0
    params, description = load_params(str(tmp_path / 'W'))
    architecture = description['architecture']
    assert architecture['cls_head'] == dataclasses.asdict(config.cls_head)
    line = f'the 2 blocks of {tmp_path / "W"} that pre-train CLS are left out'
    plain = make_task(task_config(tiny.settings(tokenizer_dir, model=MODEL)))
    kept, fresh, notes = plain.adapt(params, description, (), str(tmp_path / 'W'))
    assert (set(kept), fresh, notes) == ({'encoder', 'head'}, (), [line])
    again = make_task(config)
    assert again.adapt(params, description, (), 'W')[0] is params
    _, fresh, notes = again.adapt(kept, plain_description(architecture), (), 'V')
    assert fresh == ('cls_head',) and 'starts afresh' in notes[0]
    other = make_task(task_config(settings(tokenizer_dir, cls_head={'layers': 2, 'early': 1})))
    with pytest.raises(RequestError, match='W has cls_head 2 layers after block 2, shared True'):
        other.adapt(params, description, (), 'W')
    probing = tiny.settings('', task='probe', encoder=str(tmp_path / 'W'), model=MODEL)
    probing = {name: value for name, value in probing.items() if name not in ('tokenizer', 'mask')}
    probe = make_task(task_config(probing).resolve(37, ('ant', 'bee')))
    assert probe.notes == (line,)
    finetuning = tiny.classify_settings(init=str(tmp_path / 'W'), model=MODEL, total_steps=2)
    capsys.readouterr()
    assert loop.train(task_config(finetuning), tmp_path / 'F') == 0
    assert line in capsys.readouterr().out


def plain_description(architecture):
    kept = {name: value for name, value in architecture.items() if name != 'cls_head'}
    return {'architecture': kept}


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'cls_head': {'layers': 2, 'early': 3}}, 'beyond the 4 blocks .* to 2 or less'),
        ({'cls_head': {'layers': 4, 'early': 1}}, 'layers=3 and config.cls_head.early=1'),
        ({'target': 'pixels'}, 'cls_head predicts tokens, but config.target is pixels'),
    ],
)
def test_settings_that_are_refused(changed, message):
    with pytest.raises(RequestError, match=message):
        task_config(settings('', **changed))
