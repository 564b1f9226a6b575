"""The discrete VAE's losses against SciPy, and that it learns."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from beit_jax.data.pipeline import evaluate_batches
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from beit_jax.models.tokenizers.dvae import map_pixels
from beit_jax.settings.mapping import task_config
from beit_jax.settings.run import MeshConfig
from beit_jax.tasks import make_task
from beit_jax.tasks.tokenizer import reconstruction_loss, token_statistics
from beit_jax.tasks.tokenizer_quality import drawn_psnr
from beit_jax.train import loop
from beit_jax.train.sharding import make_mesh
from beit_jax.train.state import abstract_params
from beit_jax.weights.tokenizer import known_psnr, load_tokenizer
from tests.train.test_mesh import run_steps

SMALL = {
    'task': 'tokenizer',
    'batch_size': 5,
    'total_steps': 40,
    'compute_dtype': 'float32',
    'data': {'name': 'shapes', 'image_size': 12},
    'model': {'groups': 2, 'blocks': 1, 'width': 8, 'decoder_input': 8, 'vocabulary': 13},
}


def test_logit_laplace_is_a_density():
    """x is logit-Laplace if logit(x) is Laplace: compare with SciPy through the change of
    variables."""
    random = np.random.default_rng(0)
    images = random.uniform(0.1, 0.9, (3, 7, 3)).astype(np.float32)
    prediction = random.normal(size=(3, 7, 6)).astype(np.float32)
    location, scale = prediction[..., :3], np.exp(prediction[..., 3:])
    density = scipy.stats.laplace.pdf(scipy.special.logit(images), location, scale) / (
        images * (1 - images)
    )
    np.testing.assert_allclose(
        reconstruction_loss('logit_laplace', images, prediction),
        -np.log(density),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('kind', ['l2', 'smooth_l1'])
def test_other_reconstruction_losses(kind):
    random = np.random.default_rng(0)
    images = random.uniform(0.1, 0.9, (11, 3)).astype(np.float32)
    prediction = random.normal(size=(11, 6)).astype(np.float32)
    error = scipy.special.expit(prediction[:, :3]) - images
    expected = error**2 if kind == 'l2' else scipy.special.huber(0.1, error) / 0.1
    np.testing.assert_allclose(
        reconstruction_loss(kind, images, prediction), expected, rtol=1e-5, atol=1e-7
    )


def test_token_statistics():
    counts = np.array([3, 0, 11, 5, 0, 1, 7], np.float32)
    statistics = token_statistics(jnp.asarray(counts))
    assert statistics['token_perplexity'] == pytest.approx(
        np.exp(scipy.stats.entropy(counts)), rel=1e-5
    )
    assert statistics['codebook_usage'] == pytest.approx(5 / 7)
    assert token_statistics(jnp.zeros(7))['token_perplexity'] == 1  # nothing counted is no error


def sums_of(task, params, images, valid, **options):
    keys = jax.random.split(jax.random.key(0), len(images))
    batch = {'image': images, 'valid': valid}
    return jax.jit(lambda params, batch: task.loss(params, batch, keys, **options)[1])(
        params, batch
    )


@pytest.fixture(scope='module')
def task():
    return make_task(task_config(SMALL))


@pytest.fixture(scope='module')
def params(task):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32) * 0.3,
        abstract_params(task),
    )


def test_padding_does_not_count(task, params):
    images = np.random.default_rng(2).integers(0, 256, (5, 12, 12, 3), np.uint8)
    padded = sums_of(
        task, params, images, np.array([1, 1, 1, 0, 0], np.float32), progress=1.0, train=False
    )
    alone = sums_of(task, params, images[:3], np.ones(3, np.float32), progress=1.0, train=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), padded, alone)


def test_kl_is_that_of_scipy(task, params):

    images = np.random.default_rng(2).integers(0, 256, (2, 12, 12, 3), np.uint8)
    sums = sums_of(task, params, images, np.ones(2, np.float32), progress=1.0, train=False)
    logits = np.asarray(
        nnx.merge(task.graphdef, params).encoder(map_pixels(images.astype(np.float32) / 255)),
        np.float64,
    )
    posterior = scipy.special.softmax(logits, axis=-1)
    expected = np.sum(scipy.special.rel_entr(posterior, 1 / 13)) / (12 * 12 * 3)
    assert float(sums['kl']) == pytest.approx(expected, rel=1e-4)


def test_temperature_sharpens_the_codes(task, params):
    """At the start codes are soft, at the end nearly one-hot: then training and evaluation differ
    only by the noise."""
    images = np.random.default_rng(2).integers(0, 256, (5, 12, 12, 3), np.uint8)
    early, late = (
        float(sums_of(task, params, images, np.ones(5, np.float32), progress=p, train=True)['loss'])
        for p in (0.0, 0.9)
    )
    assert abs(early - late) > 1e-3


def test_it_learns():
    optimizer = {'lr': 2e-2, 'warmup_steps': 2, 'clip_norm': 1.0}
    task = make_task(
        task_config(
            SMALL
            | {'reconstruction': 'l2', 'kl_weight': 0.0, 'total_steps': 80, 'optimizer': optimizer}
        )
    )
    source = ShapesSource(5, 12, 'easy', 'train')
    pictures = {'image': np.stack([source.read(i).image for i in range(5)])}
    losses, _ = run_steps(task, make_mesh(MeshConfig(), jax.devices()[:1]), 80, pictures)
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


def test_bfloat16_computes_what_float32_does(params):
    """Parameters, gradients and loss stay float32; the loss agrees to what bfloat16 can say."""
    images = np.random.default_rng(2).integers(0, 256, (5, 12, 12, 3), np.uint8)
    valid = np.ones(5, np.float32)
    tasks = {
        dtype: make_task(task_config(SMALL | {'compute_dtype': dtype}))
        for dtype in ('float32', 'bfloat16')
    }
    exact, rounded = (
        float(sums_of(task, params, images, valid, progress=0.5, train=True)['loss'])
        for task in tasks.values()
    )
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.02)
    keys, batch = jax.random.split(jax.random.key(0), 5), {'image': images, 'valid': valid}
    gradients = jax.eval_shape(
        jax.grad(
            lambda params: tasks['bfloat16'].loss(params, batch, keys, progress=0.5, train=True)[0]
        ),
        params,
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((gradients, params)))


def test_sizes_that_do_not_fit():
    with pytest.raises(RequestError, match=r'image_size 15 is not a multiple of 2'):
        task_config(SMALL | {'data': {'name': 'shapes', 'image_size': 15}})
    with pytest.raises(
        RequestError, match=r"config.reconstruction='l3' is unknown. Did you mean l2\?"
    ):
        task_config(SMALL | {'reconstruction': 'l3'})


@pytest.mark.once
@pytest.mark.parametrize('held_out', [7, 0])
def test_what_a_tokenizer_keeps_lies_beside_it(held_out, tmp_path):
    """The PSNR, by NumPy, of what it draws of held-out pictures, or of training pictures where
    there are none."""
    data = SMALL['data'] | {'num_examples': 8, 'num_evaluate_examples': held_out}
    assert (
        loop.train(task_config(SMALL | {'total_steps': 3, 'batch_size': 8, 'data': data}), tmp_path)
        == 0
    )
    tokenizer, params = load_tokenizer(str(tmp_path / 'tokenizer'), decoder=True)
    split = 'evaluate' if held_out else 'train'
    source = ShapesSource(held_out or 8, 12, 'easy', split)
    config = task_config(SMALL).data
    batch = next(
        evaluate_batches(
            source,
            len(source),
            (config.view('image', 0, 'lanczos3'),),
            config,
            np.arange(len(source)),
            config.evaluate_crop,
        )
    )
    images = batch['image'] / np.float32(255)
    drawn = np.asarray(tokenizer.decode(params, tokenizer.encode(params, images)))
    psnr = -10 * np.log10(np.mean((drawn - images) ** 2))
    assert known_psnr(str(tmp_path / 'tokenizer')) == pytest.approx(psnr, abs=1e-3)
    assert drawn_psnr(tokenizer, params, images) == pytest.approx(psnr, abs=1e-3)
