"""The TPU compiler's estimates must not get worse: `make bench-tpu`."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests import tiny

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
    command = ['-m', 'beit_jax.tools.plan', f'--config={recipe}', f'--topology={topology}']
    command += [f'--config.batch_size={4 * images}', f'--json={tmp_path}/plan.json']
    if 'tokenizer' in programs:
        command += ['--dall_e', '--config.tokenizer.precision=bfloat16']
    result = subprocess.run(
        [sys.executable, *command],
        cwd=tiny.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    planned = json.loads((tmp_path / 'plan.json').read_text())['programs']
    found = {name: program['cycles'] for name, program in planned.items()}
    assert found.keys() == programs.keys()
    assert all(found[name] < 1.05 * cycles for name, cycles in programs.items()), found
