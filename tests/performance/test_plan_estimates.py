"""The TPU compiler's estimates must not get worse: `make bench-tpu`."""

import importlib.util

import pytest

from tests.performance.planned import planned

# cycles of each program with libtpu 0.0.42.1: docs/benchmarks.md
CYCLES = {
    ('configs/pretrain_imagenet1k.py', 'v5e:2x2', 64): {
        'step': 94_372_435,
        'tokenizer': 43_479_640,
    },
    ('configs/pretrain_imagenet1k.py:large', 'v5p:2x2x1', 128): {'step': 307_972_200},
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='takes the compiler of the TPU: pip install "jax[tpu]"',
)
@pytest.mark.parametrize(('recipe', 'topology', 'images'), CYCLES)
def test_no_slower(recipe, topology, images, tmp_path):
    programs = CYCLES[recipe, topology, images]
    words = [f'--config={recipe}', f'--topology={topology}', f'--config.batch_size={4 * images}']
    if 'tokenizer' in programs:
        words += ['--dall_e', '--config.tokenizer.precision=bfloat16']
    result = planned(tmp_path, *words, timeout=1800)['programs']
    found = {name: program['cycles'] for name, program in result.items()}
    assert found.keys() == programs.keys()
    assert all(found[name] < 1.05 * cycles for name, cycles in programs.items()), found
