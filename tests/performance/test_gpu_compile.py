"""The programs of the recipes, compiled for GPUs on a machine without one: they compile, they fit,
and they consist of what they should. `make test-gpu-compile`; minutes each, one after the other."""

import dataclasses
import importlib.util
import json

import pytest

from beit_jax.machines.gpus import GPUS
from tests import tiny
from tests.performance.planned import planned

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec('jax_cuda13_plugin') is None,
        reason='takes XLA for CUDA: pip install "jax[cuda13]", in an environment of its own',
    ),
]

PRETRAIN, FINETUNE = 'configs/pretrain_imagenet1k.py', 'configs/finetune_imagenet1k.py'


@dataclasses.dataclass(frozen=True)
class Case:
    recipe: str
    topology: str
    options: str
    gigabytes: float  # of a GPU, at most
    attentions: int  # fused ones: forward, backward, and computed anew
    executed: float = 1  # arithmetic, over that of the method
    collectives: tuple[str, ...] = ()
    convolutions: int = 0  # of the tokenizer


CASES = {
    'base': Case(PRETRAIN, 'h100:1', 'batch_size=256', 19, 2 * 12),
    'large by a scan': Case(
        f'{PRETRAIN}:large', 'h100:1', 'batch_size=64 model.unroll=1', 25, 2 * 24
    ),
    'remat': Case(
        PRETRAIN, 'h100:1', 'batch_size=256 model.depth=2 model.remat=true', 4, 3 * 2, 1.18
    ),
    'data and a tokenizer': Case(
        PRETRAIN, 'h100:8', 'batch_size=512 model.depth=1', 5, 2, 1, ('all-reduce',), 25
    ),
    'fsdp': Case(
        PRETRAIN, 'h100:8', 'batch_size=512 model.depth=1 mesh.fsdp=4', 5, 2, 1,
        ('all-gather', 'all-reduce'),
    ),
    'tensor': Case(
        PRETRAIN, 'h100:8', 'batch_size=512 model.depth=1 mesh.tensor=2', 5, 2, 1,
        ('all-reduce',),
    ),
    'fine-tuning': Case(FINETUNE, 'h100:1', 'batch_size=128 model.depth=1', 1.5, 2),
    'fine-tuning at 384': Case(
        f'{FINETUNE}:base,384', 'h100:1', 'batch_size=64 model.depth=1', 9, 2
    ),
    'segmentation': Case(
        'configs/segment_ade20k.py', 'h100:1', 'batch_size=2 model.depth=4', 4, 2 * 4
    ),
    'tokenizer': Case('configs/tokenizer_imagenet1k.py', 'h100:1', 'batch_size=32', 50, 0),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_compiled(name, tmp_path):
    case = CASES[name]
    words = [f'--config={case.recipe}', f'--topology={case.topology}']
    words += [f'--config.{option}' for option in case.options.split()]
    words += ['--dall_e'] * bool(case.convolutions)
    found = planned(tmp_path, *words, timeout=5400)
    step, counts = found['programs']['step'], found['programs']['step']['counts']
    assert found['memory'] < 1e9 * case.gigabytes
    assert step['executed_flops'] == pytest.approx(case.executed * step['flops'], rel=0.05)
    assert set(case.collectives) <= step['received'].keys()
    assert bool(step['received']) == (found['chips'] > 1)
    if case.convolutions:
        assert found['programs']['tokenizer']['counts']['convolution'] == case.convolutions
    # cuDNN's alone: plain attention is products of many small matrices
    assert counts.get('attention', 0) == case.attentions and 'batched product' not in counts


@pytest.mark.parametrize('gpu', GPUS)
def test_every_gpu(gpu, tmp_path):
    """XLA takes the text about it and compiles for it."""
    settings = tiny.settings('', target='pixels', compute_dtype='bfloat16')
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    words = f'--config={tmp_path}/config.json', f'--topology={gpu}:8'
    found = planned(tmp_path, *words, timeout=1800)
    assert found['chips'] == 8 and found['memory_limit'] == 0.75 * GPUS[gpu].memory
