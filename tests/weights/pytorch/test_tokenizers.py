"""Published tokenizers: files of torch.save through the importer, against those who wrote them."""

import json

import dall_e
import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from beit_jax.data.pictures.load import load_images
from beit_jax.errors import RequestError
from beit_jax.models.tokenizers import make_tokenizer
from beit_jax.tools import import_tokenizer
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.photos import write_photos
from tests.tools.call import call
from tests.weights.pytorch.forgeries import FORMATS, save


def convert(output, *inputs, **options):
    call(import_tokenizer, '--input', *inputs, output=output, **options)
    return load_tokenizer(str(output), decoder=True)


def photographs(directory, count, size):
    """float32 [count, size, size, 3] in [0, 1]: photographs and their quarters."""
    write_photos(directory)
    images, _ = load_images(str(directory), 2 * size)
    quarters = [images[:, y : y + size, x : x + size] for y in (0, size) for x in (0, size)]
    return np.concatenate(quarters)[:count].astype(np.float32) / 255


def torch_ids(encoder, images):
    pixels = dall_e.map_pixels(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        return encoder(pixels).argmax(1).flatten(1).numpy()


def torch_pictures(decoder, ids, vocabulary):
    side = round(ids.shape[1] ** 0.5)
    grid = torch.from_numpy(ids).long().reshape(-1, side, side)
    codes = functional.one_hot(grid, vocabulary).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        pixels = dall_e.unmap_pixels(torch.sigmoid(decoder(codes)[:, :3]))
    return pixels.permute(0, 2, 3, 1).numpy()


def modules(**sizes):
    """dall_e's modules with weights that give many different tokens."""
    torch.manual_seed(0)
    decoder_sizes = {'n_init': 13} if 'n_hid' in sizes else {}
    pair = dall_e.Encoder(**sizes), dall_e.Decoder(**sizes, **decoder_sizes)
    with torch.no_grad():
        for module in pair:
            for name, value in module.named_parameters():
                value.normal_(0, 0.1) if name.endswith('.b') else value.mul_(1.7)
    return pair


def compare(encoder, decoder, tokenizer, params, images):
    expected = torch_ids(encoder, images)
    ids = np.asarray(jax.jit(tokenizer.encode)(params, images))
    np.testing.assert_array_equal(ids, expected)
    assert len(np.unique(ids)) > 5
    pictures = np.asarray(jax.jit(tokenizer.decode)(params, ids[:8]))
    wanted = torch_pictures(decoder, expected[:8], tokenizer.vocabulary)
    assert pictures.shape == wanted.shape and wanted.std() > 0.02
    assert np.abs(pictures - wanted).max() < 1e-4


@FORMATS
def test_dalle(zipped, tmp_path):
    encoder, decoder = modules(n_hid=64, n_blk_per_group=1, vocab_size=521)
    tokenizer, params = convert(
        tmp_path / 'T',
        save(encoder, tmp_path / 'encoder.pkl', zipped),
        save(decoder, tmp_path / 'decoder.pkl', zipped),
    )
    config = tokenizer.config
    assert (tokenizer.kind, tokenizer.image_size, tokenizer.factor) == ('dvae', 112, 8)
    assert tokenizer.vocabulary == 521
    assert (config.blocks, config.width, config.decoder_input) == (1, 64, 13)
    compare(encoder, decoder, tokenizer, params, photographs(tmp_path / 'photos', 5, 48))


PROGRAM = """
import sys
sys.modules['torch'] = None
sys.argv = ['import_tokenizer', '--input', *sys.argv[1:3], '--output', sys.argv[3]]
import runpy
runpy.run_module('beit_jax.tools.import_tokenizer', run_name='__main__')
"""


@pytest.mark.slow
@FORMATS
def test_the_published_size_without_torch(zipped, tmp_path):
    """8192 tokens, both halves; 32 photographs at 112 x 112.

    The importer runs where torch cannot be imported.
    """
    encoder, decoder = modules()
    files = [
        save(encoder, tmp_path / 'encoder.pkl', zipped),
        save(decoder, tmp_path / 'decoder.pkl', zipped),
    ]
    done = tiny.run(['-c', PROGRAM, *map(str, files), str(tmp_path / 'T')])
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert '97,616,006 parameters, 8192 tokens, 112 pixels to 14 x 14' in done.stdout, printed
    ours = load_tokenizer(str(tmp_path / 'T'), decoder=True)
    compare(encoder, decoder, *ours, photographs(tmp_path / 'photos', 32, 112))


def test_halves_one_after_the_other(tmp_path):
    encoder, decoder = modules(n_hid=64, n_blk_per_group=1, vocab_size=521)
    files = save(encoder, tmp_path / 'encoder.pkl'), save(decoder, tmp_path / 'decoder.pkl')
    _, params = convert(tmp_path / 'T', files[0], image_size=64)
    assert list(params) == ['encoder']
    assert json.loads((tmp_path / 'T' / 'tokenizer.json').read_text())['image_size'] == 64
    assert load_tokenizer(str(tmp_path / 'T'))[1].keys() == {'encoder'}
    tokenizer, params = convert(tmp_path / 'T', files[1])
    assert tokenizer.image_size == 64 and tokenizer.config.decoder_input == 13
    assert params.keys() == {'encoder', 'decoder'}
    larger = dall_e.Decoder(n_hid=64, n_init=13, n_blk_per_group=1, vocab_size=523)
    other = save(larger, tmp_path / 'other.pkl')
    for inputs, message in (
        ((files[0], other), 'does not belong to the other half'),
        ((files[0], files[0]), 'is a second encoder'),
    ):
        with pytest.raises(RequestError, match=message):
            convert(tmp_path / 'U', *inputs)
    with pytest.raises(RequestError, match='T has decoder already: give another --output'):
        convert(tmp_path / 'T', other)
    convert(tmp_path / 'E', files[0], image_size=64)
    with pytest.raises(RequestError, match='does not belong to the other half'):
        convert(tmp_path / 'E', other)
    call(import_tokenizer, input=files[1], output=tmp_path / 'D')
    with pytest.raises(RequestError, match='has a decoder alone: import its encoder too'):
        load_tokenizer(str(tmp_path / 'D'))


class ResBlock(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        conv = lambda size: torch.nn.Conv2d(width, width, size, padding=size // 2)
        self.net = torch.nn.Sequential(conv(3), torch.nn.ReLU(), conv(3), torch.nn.ReLU(), conv(1))

    def forward(self, x):
        return x + self.net(x)


class DiscreteVAE(torch.nn.Module):
    """What unilm/beit/modeling_discrete_vae.py describes, for its names and its arithmetic."""

    def __init__(self, layers, tokens, code_width, width):
        super().__init__()
        self.codebook = torch.nn.Embedding(tokens, code_width)

        def pairs(convolution, inputs):
            for i in range(layers):
                first = convolution(width if i else inputs, width, 4, stride=2, padding=1)
                yield torch.nn.Sequential(first, torch.nn.ReLU())
                yield ResBlock(width)

        down, up = pairs(torch.nn.Conv2d, 3), pairs(torch.nn.ConvTranspose2d, code_width)
        self.encoder = torch.nn.Sequential(*down, torch.nn.Conv2d(width, tokens, 1))
        self.decoder = torch.nn.Sequential(*up, torch.nn.Conv2d(width, 3, 1))


@FORMATS
def test_customized(zipped, tmp_path):
    torch.manual_seed(0)
    theirs = DiscreteVAE(2, 53, 11, 13)
    path = save({'weights': theirs.state_dict()}, tmp_path / 'pytorch_model.bin', zipped)
    tokenizer, params = convert(tmp_path / 'T', path, image_size=20)
    assert (tokenizer.kind, tokenizer.factor) == ('customized', 4)
    assert (tokenizer.config.width, tokenizer.config.code_width) == (13, 11)
    images = photographs(tmp_path / 'photos', 7, 20)
    with torch.no_grad():
        logits = theirs.encoder(torch.from_numpy(images.transpose(0, 3, 1, 2)) * 2 - 1)
        expected = logits.argmax(1).flatten(1)
        codes = theirs.codebook(expected).reshape(7, 5, 5, 11).permute(0, 3, 1, 2)
        wanted = theirs.decoder(codes).permute(0, 2, 3, 1).numpy() / 2 + 0.5
    ids = np.asarray(jax.jit(tokenizer.encode)(params, images))
    np.testing.assert_array_equal(ids, expected)
    assert len(np.unique(ids)) > 3
    pictures = np.asarray(jax.jit(tokenizer.decode)(params, ids))
    assert wanted.std() > 0.005 and np.abs(pictures - wanted.clip(0, 1)).max() < 1e-5


def test_the_published_customized_sizes():
    ours = make_tokenizer('customized', {}, 112).abstract()
    count = sum(leaf.size for leaf in jax.tree.leaves(ours))
    with torch.device('meta'):
        assert count == sum(value.numel() for value in DiscreteVAE(3, 8192, 512, 256).parameters())


def test_weights_of_something_else(tmp_path):
    state = dall_e.Encoder(n_hid=64, n_blk_per_group=1, vocab_size=521).state_dict()
    cut = {name: value for name, value in state.items() if 'conv_3.b' not in name}
    small = state | {'blocks.group_1.block_1.res_path.conv_1.w': torch.ones(16, 64, 5, 5)}
    three = torch.ones(3)
    for tensors, message in (
        ({'a.w': three}, "'a.w' is no part of such a tokenizer"),
        ({'blocks.x.w': three}, "'blocks.x.w' is no"),
        ({'blocks.input.b': three}, 'no blocks.input.w'),
        ({'codebook.weight': torch.ones(3, 5)}, 'no encoder.0.0.weight'),
        ({'blocks.input.w': three, 'blocks.output.conv.w': three}, 'is no convolution'),
        ({'codebook.weight': three, 'encoder.0.0.weight': three}, 'is no table'),
        (
            {'encoder.5.weight': three, 'encoder.6.weight': three},
            '6.weight is there under two names',
        ),
        (
            state | {'blocks.group_17.block_1.id_path.b': three},
            r'groups is 17: it takes a number in \[1, 16\]',
        ),
        (state | {'blocks.group_9999999.block_1.id_path.b': three}, "id_path.b' is no part"),
        (
            cut,
            '4 tensors do not fit the architecture: encoder/groups/1/1/convs/3/bias is missing, '
            r'expected \(16,\)',
        ),
        (
            small,
            r'encoder/groups/1/1/convs/1/kernel is \(5, 5, 64, 16\), expected \(3, 3, 64, 16\)',
        ),
    ):
        with pytest.raises(RequestError, match=message):
            convert(tmp_path / 'T', save(tensors, tmp_path / 'f.pkl'))
    assert not (tmp_path / 'T').exists()
