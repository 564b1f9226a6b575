"""The pre-training loss and its ablations against NumPy, and the requests that they refuse."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from beit_jax.errors import RequestError
from beit_jax.images.color import jitter_views
from beit_jax.images.masking import draw_masks
from beit_jax.models.architecture import abstract, in_words, predicts_tokens
from beit_jax.models.tokenizers.dvae import map_pixels
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train.state import abstract_params
from tests import tiny


@pytest.fixture(scope='module')
def task(tokenizer_dir):
    return make_task(task_config(tiny.settings(tokenizer_dir)))


def draw_params(task):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32) * 0.2,
        abstract_params(task),
    )


@pytest.fixture(scope='module')
def params(task):
    return draw_params(task)


@pytest.fixture(scope='module')
def batch(task):
    random = np.random.default_rng(2)
    pictures = {
        view.name: random.integers(0, 256, (7, view.size, view.size, 3), np.uint8)
        for view in task.views + task.prepare_views
    }
    batch = pictures | {
        'valid': np.ones(7, np.float32),
        'view': random.integers(0, 2**32, 7, np.uint32),
        'grey': random.uniform(size=7).astype(np.float32),
    }
    return batch | task.prepare(task.frozen, batch, train=False)


def test_views(task):
    assert [(view.name, view.size, view.method) for view in task.views] == [
        ('image', 20, 'bicubic')
    ]
    assert [(view.name, view.size, view.method) for view in task.prepare_views] == [
        ('token_image', 10, 'lanczos3')
    ]


ALL, RANDOM, NONE = {'predict': 'all'}, {'mask': {'kind': 'random'}}, {'mask': {'kind': 'none'}}
SWITCHES = pytest.mark.parametrize('switches', [{}, RANDOM, ALL, ALL | RANDOM, ALL | NONE], ids=str)


def predicted_patches(task, mask):
    """Those that the loss is on, bool [7, 25]; checks that as many are hidden as should be."""
    hidden, kind = mask.sum(1), task.config.mask.kind
    assert {
        'blockwise': 0 < hidden.min() <= hidden.max() <= 11,
        'random': np.all(hidden == 11),
        'none': not hidden.any(),
    }[kind]
    return mask if task.config.predict == 'masked' else np.ones((7, 25), bool)


def hidden(task, keys):
    """bool [7, 25]: what `loss` hides."""
    mask_keys = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
    return np.asarray(draw_masks(mask_keys, task.config.mask, (5, 5)).mask_BP)


def outputs_everywhere(task, params, images, mask):
    """float64 [7, 25, V] of images in [0, 1]."""
    pixels = (images - np.array(task.config.data.mean)) / np.array(task.config.data.std)
    every = np.broadcast_to(np.arange(25), (7, 25))
    model = nnx.merge(task.graphdef, params)
    return np.asarray(model(pixels.astype(np.float32), mask, every), np.float64)


@SWITCHES
def test_loss_is_the_cross_entropy_of_tokens(switches, params, batch, tokenizer_dir):
    """Of the hidden ones, or of all. In evaluation: no jitter, no drop path. Everything after the
    model's logits is computed again in NumPy."""
    keys = jax.random.split(jax.random.key(0), 7)
    task = make_task(task_config(tiny.settings(tokenizer_dir, **switches)))
    loss, sums = task.loss(params, batch, keys, progress=0.0, train=False)
    encoder = nnx.merge(task.tokenizer._encoder, task.frozen['encoder'])
    codes = encoder(map_pixels(batch['token_image'].astype(np.float32) / 255))
    tokens = np.asarray(codes).argmax(-1).reshape(7, 25)
    mask = hidden(task, keys)
    logits = outputs_everywhere(task, params, batch['image'] / 255, mask)
    log_probabilities = scipy.special.log_softmax(logits, axis=-1)
    log_probability = np.take_along_axis(log_probabilities, tokens[..., None], -1)[..., 0]
    predicted = predicted_patches(task, mask)
    assert predicted.sum() == sums['weight']
    assert float(loss) == pytest.approx(-log_probability[predicted].sum(), rel=1e-5)
    assert float(sums['correct']) == (logits.argmax(-1) == tokens)[predicted].sum()
    counts = np.bincount(tokens[predicted], minlength=17)
    np.testing.assert_array_equal(sums['token_counts'], counts)
    metrics = task.summarize(sums)
    assert float(metrics['majority_accuracy']) == pytest.approx(counts.max() / predicted.sum())
    assert float(metrics['loss']) == pytest.approx(-log_probability[predicted].mean(), rel=1e-5)
    assert float(metrics['masked_patches']) == pytest.approx(mask.sum() / 7)


@pytest.fixture(scope='module')
def pixel_task():
    """No tokenizer is read: there is none at its path."""
    return make_task(task_config(tiny.settings('/nowhere', target='pixels')))


@pytest.fixture(scope='module')
def pixel_params(pixel_task):
    return draw_params(pixel_task)


@pytest.mark.parametrize('train', [False, True])
@SWITCHES
def test_loss_is_the_squared_error_of_normalized_pixels(switches, train, pixel_params, batch):
    """Of the picture as the encoder sees it, jittered in training, and in some patches of one
    colour."""
    keys = jax.random.split(jax.random.key(0), 7)
    task = make_task(
        task_config(tiny.settings('', target='pixels', model={'drop_path': 0.0}, **switches))
    )
    images = batch['image'].copy()
    images[3, :8, 4:16] = 0
    loss, sums = task.loss(
        pixel_params,
        batch | {'image': images},
        keys,
        progress=0.0,
        train=train,
    )
    seen = images.astype(np.float32) / 255
    if train:
        seen = np.asarray(jitter_views(0, batch, seen, task.config.data.color_jitter))
        assert np.abs(seen - images / 255).mean() > 0.01
    mask = hidden(task, keys)
    outputs = outputs_everywhere(task, pixel_params, seen, mask)
    corners = [(y, x) for y in range(0, 20, 4) for x in range(0, 20, 4)]
    patches = [seen.astype(np.float64)[:, y : y + 4, x : x + 4].reshape(7, -1) for y, x in corners]
    patches = np.stack(patches, axis=1)
    deviation = np.sqrt(patches.var(-1, keepdims=True) + 1e-6)
    targets = (patches - patches.mean(-1, keepdims=True)) / deviation
    errors, predicted = np.square(outputs - targets).mean(-1), predicted_patches(task, mask)
    assert float(loss) == pytest.approx(errors[predicted].sum(), rel=1e-5)
    assert sums['weight'] == predicted.sum()
    metrics = task.summarize(sums)
    assert metrics.keys() == {'loss', 'masked_patches'}
    assert float(metrics['loss']) == pytest.approx(errors[predicted].mean(), rel=1e-5)
    assert float(metrics['masked_patches']) == pytest.approx(mask.sum() / 7)


def test_slots(tokenizer_dir):
    """Of random masks exactly the hidden patches, or all of them."""
    keys = jax.random.split(jax.random.key(3), 7)
    (mask, slots, weights), every = (
        make_task(task_config(tiny.settings(tokenizer_dir, **switches))).draw_masks(keys)
        for switches in (RANDOM, ALL | RANDOM)
    )
    np.testing.assert_array_equal(slots, np.nonzero(mask)[1].reshape(7, 11))
    np.testing.assert_array_equal(every.mask_BP, mask)
    np.testing.assert_array_equal(every.slots_BK, np.tile(np.arange(25), (7, 1)))
    assert (
        np.all(weights == 1) and np.all(every.weights_BK == 1) and every.weights_BK.shape == (7, 25)
    )


def test_pixels_take_no_tokenizer(pixel_task):
    assert (
        [view.name for view in pixel_task.views] == ['image']
        and pixel_task.prepare_views == ()
        and not pixel_task.frozen
    )
    assert pixel_task.fingerprint() == '' and pixel_task.token_cache is None


def test_descriptions(task, pixel_task):
    """They build the model; one without a target, from before there was a choice, is of tokens."""
    descriptions = [json.loads(json.dumps(each.describe())) for each in (task, pixel_task)]
    for each, description in zip((task, pixel_task), descriptions):
        assert jax.tree.map(jnp.shape, abstract(description)[1]) == jax.tree.map(
            jnp.shape, abstract_params(each)
        )
    tokens, pixels = descriptions
    assert (tokens.pop('target'), pixels['target'], 'vocabulary' in pixels) == (
        'tokens',
        'pixels',
        False,
    )
    assert predicts_tokens(tokens) and not predicts_tokens(pixels)
    assert (
        'predicts 17 tokens' in in_words(tokens | {'crop': 1})[0]
        and 'predicts the pixels' in in_words(pixels | {'crop': 1})[0]
    )
    assert (
        task.adapt({}, {'architecture': tokens}, (), 'W')
        == pixel_task.adapt({}, {'architecture': pixels}, (), 'W')
        == ({}, (), [])
    )
    for each, description, found in ((task, pixels, 'pixels'), (pixel_task, tokens, 'tokens')):
        with pytest.raises(
            RequestError,
            match=rf'W predicts {found}, .*: set config.target={found}, or give another checkpoint',
        ):
            each.adapt({}, {'architecture': description}, (), 'W')


@pytest.mark.parametrize('switches', [{}, ALL, {'target': 'pixels'}], ids=str)
def test_padding_does_not_count(switches, batch, tokenizer_dir):
    keys = jax.random.split(jax.random.key(0), 7)
    task = make_task(task_config(tiny.settings(tokenizer_dir, **switches)))
    params = draw_params(task)
    filled = batch | {'valid': np.array([1, 1, 1, 1, 0, 0, 0], np.float32)}
    first_four = jax.tree.map(lambda x: x[:4], batch)
    _, padded = task.loss(params, filled, keys, progress=0.0, train=False)
    _, alone = task.loss(params, first_four, keys[:4], progress=0.0, train=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), padded, alone)


def test_both_pictures_of_a_view_are_jittered_alike(task, batch):
    """By its number alone: not by its row, nor by the step."""
    picture = np.repeat(batch['token_image'][:1], 3, axis=0)
    same = {'image': picture, 'token_image': picture, 'grey': np.full(3, 0.4, np.float32)}
    same['view'] = np.array([5, 11, 5], np.uint32)
    first, other = task._picture(same, 'token_image', True), task._picture(same, 'image', True)
    np.testing.assert_array_equal(first, other)
    np.testing.assert_array_equal(first[0], first[2])
    assert np.abs(first[0] - first[1]).mean() > 0.01
    assert np.abs(first[0] - picture[0] / 255).mean() > 0.01
    np.testing.assert_allclose(task._picture(same, 'image', False), picture / 255, rtol=1e-6)
    tokens = task.prepare(task.frozen, same, train=True)['tokens']
    assert tokens.dtype == np.uint16 and np.any(tokens[0] != tokens[1])


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'data': {'image_size': 21}}, r'image of 21 x 21 cannot be cut into patches of 4'),
        ({'mask': {'patches': 26}}, r'config.mask.patches is 26 but a picture has 5 x 5 = 25'),
        ({'mask': {'patches': 0}}, r'config.mask.patches is 0'),
        ({'mask': {'min_block': 12}}, r'config.mask.min_block 12 is above config.mask.patches 11'),
        ({'mask': {'kind': 'blockwize'}}, r'Did you mean blockwise\?'),
        (
            NONE,
            r'config.mask.kind=none hides nothing .*: set config.predict=all, or another '
            r'config.mask.kind',
        ),
        ({'predict': 'hidden'}, r"config.predict='hidden' is unknown. Allowed: masked, all"),
        ({'target': 'pixel'}, r"config.target='pixel' is unknown. Did you mean pixels\?"),
        (
            {'target': 'pixels', 'tokenizer': {'cache_views': 2}},
            r'cache_views is 2, but config.target=pixels has no tokens to cache: set it to 0',
        ),
        ({'mask': {'paches': 3}}, r'config.mask.paches is not a setting. Did you mean patches\?'),
        ({'model': {'width': 17}}, r'width 17 is not a multiple of config.model.heads 2'),
        ({'model': {'positions': 'shared'}}, r'Did you mean shared_bias\?'),
        ({'model': {'depth': 2.5}}, r'config.model.depth is 2.5 \(float\): it takes int'),
        (
            {'batch_size': 9, 'accumulate_steps': 2},
            r'batch_size 9 is not a multiple of config.accumulate_steps 2',
        ),
        (
            {'data': {'name': 'tfds', 'evaluate_path': '/x'}},
            r'config.data.evaluate_path is for folders',
        ),
        ({'epochs': 1.0}, r'set exactly one of them'),
        ({'compute_dtype': 'float16'}, r'Allowed: float32, bfloat16'),
        ({'data': {'crop_scale': (0.5,)}}, r'config.data.crop_scale has 1 items: it takes 2'),
        ({'task': 'pretrian'}, r'Did you mean pretrain\?'),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(changed, message, tokenizer_dir):
    with pytest.raises(RequestError, match=message):
        task_config(tiny.settings(tokenizer_dir, **changed))


def test_tokenizer_is_needed():
    with pytest.raises(RequestError, match=r'config.tokenizer.path is empty'):
        make_task(task_config(tiny.settings('')))
    with pytest.raises(RequestError, match=r'there is no tokenizer.safetensors'):
        make_task(task_config(tiny.settings('/nowhere')))


def test_grid_of_the_tokenizer(tokenizer_dir):
    """It cuts 10 pixels into 5 x 5; the encoder has 6 x 6 patches. It does take 12 pixels, where
    the recipe says so."""
    six = {'data': {'image_size': 24}}
    with pytest.raises(
        RequestError,
        match=r'5 x 5 tokens, but the encoder has 6 x 6 patches .*set '
        r'config.tokenizer.image_size=12',
    ):
        make_task(task_config(tiny.settings(tokenizer_dir, **six)))
    task = make_task(task_config(tiny.settings(tokenizer_dir, **six, tokenizer={'image_size': 12})))
    assert [view.size for view in task.prepare_views] == [12]
    with pytest.raises(RequestError, match=r"config.tokenizer.precision='float8' is unknown"):
        task_config(tiny.settings(tokenizer_dir, tokenizer={'precision': 'float8'}))


def test_any_tokenizer_will_do(tmp_path, batch):
    """A random projection of 4 x 4 patches of the picture itself: its own precision, vocabulary and
    grid."""
    from beit_jax.tools import fit_tokenizer

    arguments = [
        '--kind=random_projection',
        '--vocabulary=23',
        '--patch_size=4',
        '--image_size=20',
        f'--output={tmp_path / "r"}',
    ]
    fit_tokenizer.run(fit_tokenizer._arguments().parse_args(arguments))
    task = make_task(task_config(tiny.settings(tmp_path / 'r')))
    assert task.tokenizer.vocabulary == 23 and task.prepare_views[0].size == 20
    pictures = {'token_image': batch['image'], 'view': batch['view']}
    tokens = task.prepare(task.frozen, pictures, train=False)['tokens']
    np.testing.assert_array_equal(
        tokens, task.tokenizer.encode(task.frozen, batch['image'].astype(np.float32) / 255)
    )
    assert tokens.shape == (7, 25) and 17 <= tokens.max() < 23
