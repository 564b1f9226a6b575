"""A program that takes more memory than the machine has is refused before it runs."""

import math

import jax
import jax.numpy as jnp
import pytest

from beit_jax.errors import RequestError
from beit_jax.models import memory
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop, start
from tests import tiny


@pytest.mark.usefixtures('one_device')
def test_a_step_that_does_not_fit(tokenizer_dir, tmp_path, monkeypatch):
    config = task_config(tiny.settings(tokenizer_dir, target='pixels'))
    monkeypatch.setattr(memory, 'available', lambda: 1e6)
    with pytest.raises(
        RequestError, match=r'a step takes 0\.\d GB of memory, and this machine has 0.0 GB: lower'
    ):
        loop.train(config, tmp_path)
    config = task_config(tiny.settings(tokenizer_dir))
    monkeypatch.setattr(memory, 'available', lambda: 1e5)
    monkeypatch.setattr(start, 'check_arrays', lambda *what: None)  # those would be named first
    with pytest.raises(RequestError, match=r'the tokenizer takes 0\.\d GB of memory'):
        loop.train(config, tmp_path / 'tokens')


def test_what_a_program_takes(monkeypatch):
    """5003 x 5003 products of 4 bytes and 5003 sums, on eight devices."""
    program = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=1) @ x)
    compiled = program.lower(jax.ShapeDtypeStruct((5003,), jnp.float32)).compile()
    takes = compiled.memory_analysis().temp_size_in_bytes + 2 * 4 * 5003
    assert takes > 4 * 5003**2
    monkeypatch.setattr(memory, 'available', lambda: 8 * takes)
    memory.check_program(compiled, 'it')
    monkeypatch.setattr(memory, 'available', lambda: 8 * takes - 1)
    with pytest.raises(RequestError, match=rf'it takes {8 * takes / 1e9:.1f} GB'):
        memory.check_program(compiled, 'it')


def test_available(tmp_path, monkeypatch):
    there = memory.available()
    assert 1e8 < there <= memory._kilobytes('/proc/meminfo', 'MemTotal')
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(memory, '_LIMITS', (limit, tmp_path / 'none'))
    for text, wanted in (('max\n', there), ('12345678\n', 12345678)):
        limit.write_text(text)
        assert memory.available() == pytest.approx(wanted, rel=0.2)
    monkeypatch.setattr(memory, '_LIMITS', ())
    monkeypatch.setattr(memory, '_kilobytes', lambda file, name: math.inf)  # not Linux
    assert memory.available() == math.inf
