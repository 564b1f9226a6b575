import os
import subprocess
import sys

import pytest

from beit_jax import runtime

_SUM = """
import sys
import jax
import jax.numpy as jnp
from beit_jax.runtime import set_xla_flags
if sys.argv[1] == 'set':
    set_xla_flags()
print('ynn' in jax.jit(lambda x: jnp.sum(x * x, -1)).lower(jnp.ones((512, 512))).compile().as_text())
"""


@pytest.mark.parametrize(('how', 'in_library'), [('unset', 'True'), ('set', 'False')])
def test_compiled_sum(how, in_library):
    """The first case fails when XLA no longer gives sums to the library: then the flag is to go."""
    environment = os.environ | {'XLA_FLAGS': ''}
    done = subprocess.run(
        [sys.executable, '-c', _SUM, how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == in_library


@pytest.mark.parametrize(
    ('jaxlib', 'before', 'after'),
    [
        ('0.10.2', '', '--xla_cpu_experimental_ynn_fusion_type=-reduce'),
        (
            '0.12.0.1',
            '--xla_dump_to=D',
            '--xla_dump_to=D --xla_cpu_experimental_ynn_fusion_type=-reduce',
        ),
        (
            '0.12.0',
            '--xla_cpu_experimental_ynn_fusion_type=',
            '--xla_cpu_experimental_ynn_fusion_type=',
        ),
        ('0.9.2', '', ''),
        ('0.13.0', '', ''),
        ('1.0', '', ''),
    ],
)
def test_flags(monkeypatch, jaxlib, before, after):
    monkeypatch.setenv('XLA_FLAGS', before)
    monkeypatch.setattr(runtime, 'version', {'jaxlib': jaxlib}.get)
    runtime.set_xla_flags()
    assert os.environ['XLA_FLAGS'] == after
