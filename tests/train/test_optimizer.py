"""The update rule against torch's AdamW, the schedule against its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.settings.run import OptimizerConfig
from beit_jax.tasks import make_task
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.weights.trees import path_string

DEPTH = 3
# What the recipe says of each parameter: decayed or not, and its layer (0 embeddings, i + 1 block
# i, DEPTH + 1 above).
EXPECTED = {
    'encoder/patch_embedding/kernel': (True, 0),
    'encoder/patch_embedding/bias': (False, 0),
    'encoder/cls_token': (False, 0),
    'encoder/mask_token': (True, 0),
    'encoder/position_embedding': (False, 0),
    'encoder/position_bias/table': (True, 4),
    'encoder/blocks/00/attention/query/kernel': (True, 1),
    'encoder/blocks/00/attention/query/bias': (False, 1),
    'encoder/blocks/01/attention/position_bias/table': (True, 2),
    'encoder/blocks/02/norm1/scale': (False, 3),
    'encoder/blocks/02/scale1': (False, 3),
    'encoder/blocks/02/mlp/fc2/kernel': (True, 3),
    'head/norm/bias': (False, 4),
    'head/norm/scale': (False, 4),
    'head/projection/kernel': (True, 4),
    'head/projection/bias': (False, 4),
}


def nested(flat: dict) -> dict:
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def test_three_steps_as_torch():
    random = np.random.default_rng(0)
    values = {
        path: random.normal(size=(3, 5) if decay else (7,)).astype(np.float32)
        for path, (decay, _) in EXPECTED.items()
    }
    gradients = [
        {path: random.normal(size=value.shape).astype(np.float32) for path, value in values.items()}
        for _ in range(3)
    ]
    config = OptimizerConfig(
        lr=2e-3, final_lr=1e-4, warmup_steps=2, weight_decay=0.05, clip_norm=1.5, layer_decay=0.65
    )
    schedule = optimizers.learning_rate(config, 5, 1)

    tensors = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in values.items()}
    groups = [
        {
            'params': [tensors[path]],
            'weight_decay': 0.05 * decay,
            'scale': 0.65 ** (DEPTH + 1 - layer),
        }
        for path, (decay, layer) in EXPECTED.items()
    ]
    peer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    params = nested({path: jnp.asarray(value) for path, value in values.items()})
    optimizer = optimizers.make_optimizer(config, schedule, params)
    state = optimizer.init(params)
    for number, step_gradients in enumerate(gradients):
        updates, state = optimizer.update(nested(step_gradients), state, params)
        params = optax.apply_updates(params, updates)
        for path, tensor in tensors.items():
            tensor.grad = torch.tensor(step_gradients[path])
        torch.nn.utils.clip_grad_norm_(tensors.values(), 1.5)
        for group in peer.param_groups:
            group['lr'] = float(schedule(number)) * group['scale']
        peer.step()
    ours = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, tensor in tensors.items():
        np.testing.assert_allclose(
            ours[path], tensor.detach().numpy(), rtol=0, atol=1e-6, err_msg=path
        )
        assert np.abs(ours[path] - values[path]).max() > 1e-5, path


def test_the_recipe_for_base_as_torch():
    """Three steps of every parameter of the fine-tuning recipe (12 layers, decay 0.65; small in
    width), with the official code's rules written by shape and name: lr scale 0.65 ** (13 - layer),
    no decay of vectors, positions and CLS (optim_factory.py)."""
    settings = load_recipe('configs/finetune_imagenet1k.py', 'base').to_dict()
    settings['model'] |= {'width': 24, 'heads': 3, 'hidden': 29}
    settings['data'] |= {'image_size': 48}
    task = make_task(task_config(settings).resolve(1024, tuple('abcdefg')))
    abstract = {
        path_string(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(states.abstract_params(task))
    }
    config = task.config.optimizer
    assert (config.layer_decay, config.lr, config.weight_decay, task.config.model.depth) == (
        0.65,
        4e-3,
        0.05,
        12,
    )
    assert len(abstract) == 12 * 18 + 7
    random = np.random.default_rng(0)
    values, *gradients = (
        {path: random.normal(size=leaf.shape).astype(np.float32) for path, leaf in abstract.items()}
        for _ in range(4)
    )

    tensors = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in values.items()}
    groups = []
    for path, tensor in tensors.items():
        name = path.split('/')
        layer = int(name[2]) + 1 if name[1] == 'blocks' else 13 if name[0] == 'head' else 0
        decayed = tensor.ndim > 1 and name[-1] not in ('position_embedding', 'cls_token')
        groups.append(
            {
                'params': [tensor],
                'lr': 4e-3 * 0.65 ** (13 - layer),
                'weight_decay': 0.05 if decayed else 0.0,
            }
        )
    peer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    params = nested(values)
    optimizer = optimizers.make_optimizer(config, lambda count: 4e-3, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step_gradients in gradients:
        updates, state = update(nested(step_gradients), state, params)
        params = optax.apply_updates(params, updates)
        for path, tensor in tensors.items():
            tensor.grad = torch.tensor(step_gradients[path])
        peer.step()
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            np.testing.assert_allclose(
                leaf,
                tensors[path_string(path)].detach().numpy(),
                rtol=0,
                atol=1e-6,
                err_msg=path_string(path),
            )


def test_schedule():
    config = OptimizerConfig(lr=1.5e-3, final_lr=1e-5, warmup_epochs=2.0)
    schedule = optimizers.learning_rate(config, 47, 5.5)
    warmup = 11
    for step in range(47):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (47 - warmup)))
        expected = 1.5e-3 * step / warmup if step < warmup else 1e-5 + (1.5e-3 - 1e-5) * cosine
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step
    assert float(schedule(47)) == pytest.approx(1e-5)
    schedule = optimizers.learning_rate(
        OptimizerConfig(lr=7e-4, final_lr=1e-5, warmup_steps=11, schedule='linear'), 47, 1
    )
    for step in range(60):
        expected = 7e-4 * step / 11
        if step >= 11:
            expected = 1e-5 + (7e-4 - 1e-5) * max(0, 1 - (step - 11) / (47 - 11))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step
    poly = optimizers.learning_rate(
        OptimizerConfig(lr=7e-4, final_lr=1e-5, warmup_steps=11, schedule='poly'), 47, 1
    )
    for step in range(47):  # mmcv's PolyLrUpdaterHook and its warm-up, in NumPy
        regular = (7e-4 - 1e-5) * (1 - step / 47) + 1e-5
        share = 1 - (1 - min(step, 11) / 11) * (1 - 1e-6)
        assert float(poly(step)) == pytest.approx(regular * share, rel=1e-5, abs=1e-9), step
    # the figures of the official ADE20K runs: no restart after the warm-up
    recipe = OptimizerConfig(lr=7e-4, final_lr=0.0, warmup_steps=1500, schedule='poly')
    rates = optimizers.learning_rate(recipe, 160_000, 1)
    assert float(rates(1500)) == pytest.approx(7e-4 * (1 - 1500 / 160_000), rel=1e-6)
    without_warmup = OptimizerConfig(lr=7e-4, schedule='linear')
    assert float(optimizers.learning_rate(without_warmup, 47, 1)(0)) == pytest.approx(7e-4)
    with pytest.raises(RequestError, match='warm-up takes 50 of 47 steps'):
        optimizers.learning_rate(OptimizerConfig(warmup_steps=50), 47, 1)
