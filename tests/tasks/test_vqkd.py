"""VQ-KD's training against PyTorch (`tests.torch_vqkd`), on one device and on many, and resumed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from beit_jax.errors import RequestError
from beit_jax.models.tokenizers.vqkd import first_codebook, next_codebook
from beit_jax.settings.mapping import task_config
from beit_jax.settings.run import MeshConfig
from beit_jax.tasks import make_task
from beit_jax.train import loop, sharding, step
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train.processes.distributed import Stop
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.pytorch.tokenizers import from_vqkd
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny, torch_vqkd
from tests.train.test_resume import assert_same_run

MODEL = {
    'width': 64, 'depth': 1, 'decoder_depth': 1, 'heads': 1, 'hidden': 37, 'vocabulary': 53,
    'code_width': 7, 'patch_size': 4,
}  # fmt: skip
LR, DECAY = 3e-3, 0.01


@pytest.fixture(scope='module')
def teacher_dir(tmp_path_factory):
    """A BEiT with random weights: 5 x 5 patches of width 16."""
    workdir = tmp_path_factory.mktemp('teacher')
    config = tiny.settings('', target='pixels', model={'depth': 1})
    tiny.save_checkpoint(workdir, make_task(task_config(config)), seed=5)
    return workdir


def settings(teacher_dir, **changed) -> dict:
    config = tiny.settings('', **{'task': 'vqkd', 'teacher': {'path': str(teacher_dir)}} | changed)
    config = {name: value for name, value in config.items() if name not in ('tokenizer', 'mask')}
    optimizer = {
        'lr': LR,
        'warmup_steps': 1,
        'beta2': 0.99,
        'weight_decay': DECAY,
        'clip_norm': 0.0,
    }
    return config | {'model': MODEL, 'optimizer': optimizer}


def ours(tensors) -> dict:
    """Tensors of the official names as our parameters, or gradients as ours."""
    return from_vqkd({name: tensor.detach().numpy() for name, tensor in tensors.items()})[1]


def batches(task, count):
    """Random pictures, and what the teacher sees in them."""
    rng, config = np.random.default_rng(7), task.config
    for number in range(count):
        images = rng.integers(0, 256, (config.batch_size, 20, 20, 3), np.uint8)
        rows = np.arange(config.batch_size, dtype=np.uint32)
        yield {
            'image': images,
            'valid': np.ones(len(rows), np.float32),
            'substituted': np.zeros(len(rows), bool),
            'view': rows + number * len(rows),
            'grey': np.full(len(rows), 0.4, np.float32),
        }


def trained(task, mesh, params=None, count=3):
    """(metrics and parameters after each step); without `params` from the seed and k-means."""
    optimizer = optimizers.make_optimizer(
        task.config.optimizer, lambda _: LR, states.abstract_params(task)
    )
    given, params = params is not None, params or states.initial_params(task, task.config.seed)
    state = states.initial_state(task, optimizer, mesh, params)
    train_step = step.make_train_step(task, optimizer, lambda _: LR, mesh, 9)
    prepare = step.make_prepare(task, mesh, train=True)
    made = []
    for read in batches(task, count):
        batch = sharding.put_batch(mesh, read, task.config.batch_size)
        batch |= prepare(task.frozen, batch)
        if not (given or made):
            begun = step.make_begin(task, mesh)(state['params'], batch)
            state |= {'params': states.merge(state['params'], begun)}
        state, metrics = train_step(state, batch)
        made.append(jax.device_get((metrics, state['params'])))
    return made


def one_device():
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def torch_loss(model, images, features):
    """(loss, vectors [N, C], ids [N]) after the facts."""
    vectors = model.vectors(images)
    ids = model.ids(vectors)
    codes = model.quantize.embedding.weight[ids]
    decoded = model.decode(vectors + (codes - vectors).detach())
    cosine = functional.cosine_similarity(decoded, features, dim=-1)
    loss = (1 - cosine).mean() + functional.mse_loss(vectors, codes)
    return loss, vectors.detach().flatten(0, 1), ids.flatten()


def test_three_steps_against_torch(teacher_dir):
    """Loss, gradients of the first step, and codebook and parameters after each."""
    task = make_task(task_config(settings(teacher_dir)))
    model = torch_vqkd.make(**MODEL, side=20, features=16)
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decayed = [p for n, p in learned.items() if p.ndim > 1 and 'token' not in n and 'pos' not in n]
    others = [p for p in learned.values() if not any(p is one for one in decayed)]
    groups = [{'params': decayed}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), weight_decay=DECAY)
    start = ours(model.state_dict())
    made = trained(task, one_device(), start)
    prepare = step.make_prepare(task, one_device(), train=True)
    for number, batch in enumerate(batches(task, 3)):
        images = torch.from_numpy(batch['image'].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        features = np.array(prepare(task.frozen, batch)['features'])
        optimizer.zero_grad()
        loss, vectors, ids = torch_loss(model, images, torch.from_numpy(features))
        loss.backward()
        if number == 0:
            gradients = {name: p.grad for name, p in learned.items()}
            codebook = torch.zeros_like(model.quantize.embedding.weight)
            gradients = ours(gradients | {'quantize.embedding.weight': codebook})
            given = batch | {'features': features}
            of_ours = jax.grad(
                lambda p: task.loss(p, given, None, progress=0.0, train=True)[0] / 8
            )(start)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, atol=1e-5), of_ours, gradients
            )
            assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 0.01
        optimizer.step()
        rows = model.quantize.embedding.weight
        with torch.no_grad():
            chosen = functional.one_hot(ids, len(rows)).float()
            counts, means = chosen.sum(0), chosen.T @ vectors
            means = functional.normalize(means / counts.clamp(min=1)[:, None], dim=-1)
            means = torch.where(counts[:, None] > 0, means, rows)
            rows.copy_(functional.normalize(0.99 * rows + 0.01 * means, dim=-1))
        metrics, params = made[number]
        assert metrics['loss'] == pytest.approx(loss.item(), abs=1e-5)
        assert metrics['dead_codes'] == int((counts == 0).sum()) > 0
        assert metrics['codebook_usage'] == pytest.approx(1 - metrics['dead_codes'] / 53)
        np.testing.assert_allclose(params['encoder']['codebook'], rows, atol=1e-5)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-4),
            params,
            ours(model.state_dict()),
        )


def test_codebook_by_kmeans():
    """Against a plain loop of the same start; rows that nobody is nearest to stay."""
    rng = np.random.default_rng(3)
    for count, rows in ((101, 13), (7, 11)):
        vectors = rng.normal(size=(count, 5)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        key = jax.random.key(1)
        start = np.asarray(first_codebook(key, jnp.asarray(vectors), rows, 0))
        assert all((vectors == row).all(axis=1).any() for row in start)  # vectors of the batch
        if count > rows:
            assert len(np.unique(start, axis=0)) == rows
        expected = start
        for _ in range(10):
            nearest, moved = (vectors @ expected.T).argmax(1), expected.copy()
            for row in range(rows):
                if (nearest == row).any():
                    mean = vectors[nearest == row].mean(0)
                    moved[row] = mean / np.linalg.norm(mean)
            expected = moved
        found = first_codebook(key, jnp.asarray(vectors), rows)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_that_nobody_chose_stay():
    codebook = np.eye(3, 5, dtype=np.float32)
    moved = next_codebook(codebook, np.full((3, 5), 2.0, np.float32), np.array([0.0, 4, 0]), 0.9)
    np.testing.assert_array_equal(np.asarray(moved)[[0, 2]], codebook[[0, 2]])
    wanted = 0.9 * codebook[1] + 0.1 / np.sqrt(5)
    np.testing.assert_allclose(moved[1], wanted / np.linalg.norm(wanted), rtol=1e-6)


@pytest.fixture(scope='module')
def alone(teacher_dir):
    """Steps of 16 pictures on one device, from k-means on."""
    return trained(make_task(task_config(settings(teacher_dir, batch_size=16))), one_device())


@pytest.mark.parametrize('parts, devices', [(1, 8), (4, 1), (2, 4)])
def test_the_codebook_is_of_the_global_batch(parts, devices, alone, teacher_dir):
    """The same to 1e-6 on any number of devices and in parts."""
    changed = settings(teacher_dir, batch_size=16, accumulate_steps=parts)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    for (metrics, params), (expected, wanted) in zip(
        trained(make_task(task_config(changed)), mesh), alone
    ):
        codebook, reference = (each['encoder']['codebook'] for each in (params, wanted))
        np.testing.assert_allclose(codebook, reference, atol=1e-6)
        assert metrics['loss'] == pytest.approx(expected['loss'], abs=1e-5)
        assert metrics['dead_codes'] == expected['dead_codes']
    assert np.abs(reference - alone[0][1]['encoder']['codebook']).max() > 1e-3


@pytest.mark.usefixtures('one_device')
def test_a_run_resumes_bit_for_bit(teacher_dir, tmp_path, monkeypatch):
    """It starts by k-means once, learns, and ends with a tokenizer."""
    config = task_config(settings(teacher_dir, total_steps=7, data={'crop_scale': (1.0, 1.0)}))
    assert loop.train(config, tmp_path / 'whole') == 0
    monkeypatch.setattr(Stop, 'asked', lambda self, number: number in (1, 4))
    assert loop.train(config, tmp_path / 'W') == loop.STOPPED
    assert loop.train(config, tmp_path / 'W') == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path / 'W') == 0
    assert_same_run(tmp_path / 'W', tmp_path / 'whole')
    params, description = load_params(str(tmp_path / 'W'))
    assert description['architecture']['features'] == 16
    tokenizer, saved = load_tokenizer(str(tmp_path / 'W' / 'tokenizer'), decoder=True)
    assert tokenizer.config == dataclasses.replace(config.model, features=16)
    jax.tree.map(np.testing.assert_array_equal, saved, params)
    codebook = params['encoder']['codebook']
    np.testing.assert_allclose(np.linalg.norm(codebook, axis=1), 1, atol=1e-6)
    settled = settings(teacher_dir, total_steps=2, init=str(tmp_path / 'W'))
    assert loop.train(task_config(settled), tmp_path / 'on') == 0  # k-means does not run again
    after = load_params(str(tmp_path / 'on'))[0]['encoder']['codebook']
    assert np.median(np.linalg.norm(after - codebook, axis=1)) < 0.03


@pytest.mark.once
def test_two_processes_are_one(teacher_dir, tmp_path):
    flat = tiny._command('', '', settings(teacher_dir, batch_size=16, total_steps=3))[3:]
    command = lambda name: [
        'main.py',
        '--config=configs/tokenizer_vqkd_imagenet1k.py',
        f'--workdir={tmp_path / name}',
        *flat,
        '--config.epochs=0.0',
        '--config.optimizer.warmup_epochs=0.0',
    ]
    pair = tiny.start_pair(command('pair'))
    one = tiny.run(command('one'), JAX_NUM_CPU_DEVICES='2')
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert one.returncode == 0, one.stderr
    found, expected = (
        load_params(str(tmp_path / name))[0]['encoder']['codebook'] for name in ('pair', 'one')
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'teacher': {'path': ''}}, 'config.teacher.path is empty'),
        ({'teacher': {'path': '/none'}}, 'config.teacher.path=/none: there is no such checkpoint'),
        (
            {'data': {'image_size': 28}},
            r'gives 5 x 5 patches, the tokenizer has 7 x 7: set config.teacher.image_size=28 '
            r'\(its positions are interpolated\), or config.data.image_size=20\.',
        ),
        ({'teacher': {'mean': (0.5,)}}, 'config.teacher.mean has 1 numbers'),
    ],
)
def test_teachers_that_are_refused(changed, message, teacher_dir):
    given = settings(teacher_dir, **changed)
    given['teacher'] = {'path': str(teacher_dir)} | given['teacher']
    with pytest.raises(RequestError, match=message):
        make_task(task_config(given))


def test_the_sizes_that_are_named_fit(teacher_dir):
    for size, shown in ((28, 28), (20, 0)):
        teacher = {'path': str(teacher_dir), 'image_size': shown}
        changed = {'data': {'image_size': size}, 'teacher': teacher}
        task = make_task(task_config(settings(teacher_dir, **changed)))
        assert task.teacher.grid == task.config.grid == (size // 4,) * 2
