"""`benchmark step`: the peer computes what the official code does; one run measures both."""

import functools
import itertools
import json
from pathlib import Path

import dall_e
import pytest
import torch

from beit_jax.performance.torch_benchmark import (
    VARIANTS,
    MaskedImageModel,
    PeerTokenizer,
    Tokenizer,
)
from beit_jax.settings.mapping import task_config
from beit_jax.tools import arguments, benchmark, config_option
from tests.torch_models import make_timm

# as a run writes it: it takes no ml_collections
CONFIG = 'tests/golden/configs/pretrain_imagenet1k_base.json'
SMALL = {
    'data.image_size': '48',
    'model.width': '28',
    'model.depth': '2',
    'model.heads': '2',
    'model.hidden': '44',
    'mask.patches': '4',
    'mask.min_block': '2',
    'batch_size': '3',
    'compute_dtype': 'float32',
}


def flags(**changed):
    return [f'--config.{key}={value}' for key, value in (SMALL | changed).items()]


def config(**changed):
    parser = benchmark._arguments()
    given = ['step', f'--config={CONFIG}', *flags(**changed)]
    options, options.overrides = parser.parse_known_args(given)
    return config_option.read(options)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('positions', ['shared_bias', 'absolute'])
def test_peer_is_the_official_model(positions, fused):
    """With all patches asked for in turn, logits as timm's encoder gives under the same weights."""
    theirs = make_timm(positions, width=28, depth=2, heads=2, hidden=44, side=48, vocabulary=53)
    peer = MaskedImageModel(config(**{'model.positions': positions}), 53, fused).eval()
    for block in peer.blocks:
        block.drop_path = 0.0
    names = {
        'patch_embed.proj': 'patch_embed',
        'rel_pos_bias.relative_position_bias_table': 'table',
        'mlp.fc1': 'mlp.0',
        'mlp.fc2': 'mlp.2',
    }
    weights = {}
    for name, value in theirs.named_parameters():
        ours = functools.reduce(lambda name, pair: name.replace(*pair), names.items(), name)
        weights[ours] = value
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (['index'], [])
    torch.manual_seed(1)
    images, mask_BP = torch.randn(3, 3, 48, 48), torch.rand(3, 9) < 0.5
    slots_BK = torch.rand(3, 9).argsort(1)[:, :7]
    with torch.no_grad():
        expected = theirs(images, mask_BP).gather(1, slots_BK[..., None].expand(-1, -1, 53))
        found = peer(images, mask_BP, slots_BK)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_tokenizer_of_the_peer():
    torch.manual_seed(0)
    theirs, peer = dall_e.Encoder(n_hid=16, vocab_size=53), Tokenizer(width=16, vocabulary=53)
    by_shape = lambda values: sorted(tuple(value.shape) for value in values)
    assert by_shape(theirs.parameters()) == by_shape(peer.parameters())
    pairs = [('blocks.input', 'layers.0'), ('blocks.output.conv', 'output')]
    for group, block in itertools.product(range(4), range(2)):
        old = f'blocks.group_{group + 1}.block_{block + 1}'
        new = f'layers.{1 + 3 * group + block}'
        pairs.append((f'{old}.id_path', f'{new}.shortcut'))
        for i in range(4):
            pairs.append((f'{old}.res_path.conv_{i + 1}', f'{new}.branch.{2 * i + 1}'))
    weights, state = {}, dict(theirs.named_parameters())
    for old, new in pairs:
        if f'{old}.w' in state:
            weights |= {f'{new}.weight': state[f'{old}.w'], f'{new}.bias': state[f'{old}.b']}
    peer.load_state_dict(weights)
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    pixels = dall_e.map_pixels(images)
    with torch.no_grad():
        expected = theirs(pixels)
        torch.testing.assert_close(peer.output(peer.layers(pixels)), expected, atol=1e-5, rtol=0)
        assert torch.equal(peer(images), expected.argmax(1).flatten(1))
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ('precision', 'dtype', 'tf32'),
    [
        ('bfloat16_3x', torch.float32, False),
        ('tensorfloat32', torch.float32, True),
        ('float16', torch.float16, True),
        ('bfloat16', torch.bfloat16, True),
    ],
)
def test_precision_of_the_peers_tokenizer(precision, dtype, tf32, monkeypatch):
    """On a GPU it is that of ours; the last layer is never of half the bits, as in dall_e."""
    monkeypatch.setattr('beit_jax.models.tokenizers.target_platform', lambda: 'gpu')
    seen, small = {}, functools.partial(Tokenizer, width=16)
    monkeypatch.setattr('beit_jax.performance.torch_benchmark.Tokenizer', small)
    peer = PeerTokenizer(
        config(**{'tokenizer.precision': precision}), compiled=False, vocabulary=53
    )

    def see(module, inputs, output):
        seen[output.dtype] = torch.backends.cudnn.allow_tf32

    for layer in (peer._encode.layers[0], peer._encode.output):
        layer.register_forward_hook(see)
    assert peer.encode().shape == (3, 9)
    assert seen == {dtype: tf32, torch.float32: tf32} and torch.backends.cudnn.allow_tf32


def test_benchmark_step(tmp_path, monkeypatch, capsys):
    assert tuple(VARIANTS) == benchmark.PEERS
    given = ['--repeats=1', '--peer', 'eager', f'--json={tmp_path}/step.json']
    command = ['benchmark', 'step', f'--config={CONFIG}', *flags(), *given]
    monkeypatch.setattr('sys.argv', command)
    monkeypatch.setattr('beit_jax.performance.step_benchmark.make_mesh', one_device)
    monkeypatch.setattr('jax.device_count', lambda: 1)
    arguments.main(benchmark.run, benchmark._arguments())
    result = json.loads((tmp_path / 'step.json').read_text())
    assert [(row['name'], row['what']) for row in result['rows']] == [
        ('ours', 'whole step'),
        ('ours', 'step on given tokens'),
        ('eager', 'whole step'),
        ('eager', 'step on given tokens'),
    ]
    ours, _, theirs, _ = (row['seconds']['median'] for row in result['rows'])
    assert result['ratio']['whole step'] == pytest.approx(theirs / ours)
    assert result['images_per_second'] == pytest.approx(3 / ours)
    achieved = result['flops']['whole step'] / ours
    assert result['utilisation'] == pytest.approx(achieved / result['product_flops_per_second'])
    assert 'the best of PyTorch takes' in capsys.readouterr().out


def one_device(mesh):
    import jax

    from beit_jax.train.sharding import make_mesh

    return make_mesh(mesh, jax.devices()[:1])


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (
            ['--config=configs/finetune_imagenet1k.py'],
            'config.task=classify: benchmark step measures pre-training',
        ),
        (
            [f'--config={CONFIG}', '--config.target=pixels'],
            'config.target=pixels: benchmark step measures pre-training on tokens',
        ),
        (
            [f'--config={CONFIG}', '--config.predict=all', '--peer'],
            'config.predict=all: --peer predicts hidden patches alone',
        ),
        (
            [f'--config={CONFIG}', '--config.tokenizer.path=T', '--peer'],
            "--peer has DALL-E's tokenizer: leave config.tokenizer.path empty",
        ),
        ([f'--config={CONFIG}', '--peer'], '--peer runs on one device, here are 8'),
        (
            [f'--config={CONFIG}', '--config.batch_sise=3'],
            'config.batch_sise is not a setting. Did you mean batch_size?',
        ),
        ([f'--config={CONFIG}', '--batch_size=3'], 'settings are given as --config.batch_size=3'),
        (['--config=README.json'], 'README.json is not a file that is there'),
    ],
)
def test_bad_requests(given, message, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['benchmark', 'step', *given])
    with pytest.raises(SystemExit, match='2'):
        arguments.main(benchmark.run, benchmark._arguments())
    assert message in capsys.readouterr().err


def test_peer_without_torch(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['benchmark', 'step', f'--config={CONFIG}', '--peer'])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='2'):
        arguments.main(benchmark.run, benchmark._arguments())
    assert '--peer takes PyTorch: pip install torch' in capsys.readouterr().err


def test_a_damaged_config(tmp_path, monkeypatch, capsys):
    (tmp_path / 'config.json').write_text('{"task": ')
    monkeypatch.setattr('sys.argv', ['benchmark', 'step', f'--config={tmp_path}/config.json'])
    with pytest.raises(SystemExit, match='2'):
        arguments.main(benchmark.run, benchmark._arguments())
    assert 'is damaged' in capsys.readouterr().err


def test_settings_of_a_run_as_those_of_a_recipe():
    """Lists become tuples, of numbers of the same kind."""
    changed = config(**{'data.crop_scale': '(0.2,0.9)'})
    assert changed.data.crop_scale == (0.2, 0.9)
    assert task_config(json.loads(Path(CONFIG).read_text())).data.crop_scale == (0.08, 1.0)
