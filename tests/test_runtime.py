"""What a process does before JAX starts."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import runtime
from beit_jax.errors import RequestError
from tests import tiny


def output(program: str, *arguments: str, **environment) -> str:
    """What a Python program of its own prints."""
    command, environment = [sys.executable, '-c', program, *arguments], os.environ | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


_SUM = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import jax.numpy as jnp
from beit_jax.runtime import set_xla_flags
if sys.argv[1] == 'set':
    set_xla_flags()
compiled = jax.jit(lambda x: jnp.sum(x * x, -1)).lower(jnp.ones((512, 512))).compile()
print('ynn' in compiled.as_text())
"""


@pytest.mark.parametrize(('how', 'in_library'), [('unset', 'True'), ('set', 'False')])
def test_compiled_sum(how, in_library):
    """The first case fails when XLA no longer gives sums to the library: then the flag is to go."""
    assert output(_SUM, how, XLA_FLAGS='').strip() == in_library


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


# what is multiplied, 100 MB, has to be there as a whole
_STEP = """
import resource, statistics
from beit_jax.runtime import take_huge_pages
take_huge_pages()
import jax
import jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(jnp.outer(x, x)) @ x)
x = jnp.ones(5003)
faults = []
for _ in range(21):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))
"""
_LEFT_TO_PROGRAMS = runtime._HUGE_PAGES.is_file() and '[madvise]' in runtime._HUGE_PAGES.read_text()


@pytest.mark.skipif(not _LEFT_TO_PROGRAMS, reason='Linux gives programs none, or all to all')
@pytest.mark.parametrize(
    ('tunables', 'least', 'most'), [('', 0, 2_000), ('glibc.malloc.hugetlb=0', 20_000, 1e9)]
)
def test_pages_cleared_by_a_step(tunables, least, most):
    """24,400 of 4 KB or 50 of 2 MB. The second case fails when JAX or glibc does this by itself:
    then `take_huge_pages` is to go."""
    assert least <= float(output(_STEP, GLIBC_TUNABLES=tunables)) <= most


_ARENAS = 'glibc.malloc.arena_max=2'
_ANEW = """
import os, sys
from beit_jax import runtime
print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), flush=True)
{}
runtime.take_huge_pages()
"""


@pytest.mark.skipif(not _LEFT_TO_PROGRAMS, reason='Linux gives programs none, or all to all')
@pytest.mark.parametrize(
    ('before', 'first', 'starts'),
    [
        ('', '', ['', 'glibc.malloc.hugetlb=1']),
        ('', _ARENAS, [_ARENAS, f'{_ARENAS}:glibc.malloc.hugetlb=1']),
        ('', 'glibc.malloc.hugetlb=0', ['glibc.malloc.hugetlb=0']),
        ('sys.settrace(lambda *_: None)', '', ['']),
        ("sys.argv[0] = 'main.py'", '', ['']),  # as a notebook's %run does
        ("runtime.gpu_plugins = lambda: ['xla_cuda13']", '', ['']),
    ],
)
def test_a_program_starts_anew_at_most_once(before, first, starts):
    """As the same process, with its arguments, and the settings that there were."""
    said = output(_ANEW.format(before), 'a', 'b c', GLIBC_TUNABLES=first).splitlines()
    process, _ = said[0].split(maxsplit=1)
    assert said == [f"{process} ['a', 'b c'] {tunables}" for tunables in starts]


def test_programs_are_kept_for_the_next_start(tmp_path):
    names = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
    settings = lambda: [getattr(jax.config, name) for name in names]
    kept = settings()
    runtime.keep_programs(tmp_path)
    assert settings() == kept  # where the user wants them
    try:
        for name, value in zip(names, (None, 1.0)):
            jax.config.update(name, value)
        runtime.keep_programs(tmp_path)
        assert settings() == [str(tmp_path / 'compiled'), 0.0]
    finally:
        for name, value in zip(names, kept):
            jax.config.update(name, value)


@pytest.mark.parametrize(
    ('variable', 'value', 'message'),
    [
        ('JAX_PLATFORMS', 'tpu', 'error: JAX has no device for JAX_PLATFORMS=tpu ('),
        ('JAX_PLATFORMS', 'cuda', 'error: JAX has no device for JAX_PLATFORMS=cuda: pip install'),
        ('JAX_PLATFORMS', 'nothing', 'error: JAX has no device for JAX_PLATFORMS=nothing ('),
        ('JAX_ENABLE_X64', '1', 'error: JAX_ENABLE_X64 is set: unset it'),
        ('SLURM_NTASKS', '4', 'error: the environment (SLURM_NTASKS=4) is that of several'),
    ],
)
def test_a_machine_that_has_not_what_is_asked_for(variable, value, message, tmp_path):
    """A line and status 2, with which the loop that starts runs again ends."""
    result = tiny.run(tiny.arguments(tmp_path / 'run', tmp_path), **{variable: value})
    assert result.returncode == 2 and result.stderr.startswith(message), result.stderr
    assert len(result.stderr.splitlines()) == 1
    if variable == 'JAX_PLATFORMS':
        tool = ['-m', 'beit_jax.tools.fit_tokenizer', '--kind=random_projection']
        result = tiny.run([*tool, f'--output={tmp_path / "tokenizer"}'], JAX_PLATFORMS=value)
        assert result.returncode == 2 and result.stderr.startswith(message), result.stderr


# as on a machine with a GPU and the JAX for CPUs
_FALLBACK = """
import runpy, sys
from jax._src import hardware_utils
hardware_utils.has_visible_nvidia_gpu = lambda: True
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0] == 'main.py' else runpy.run_module
run(sys.argv[0], run_name='__main__')
"""


def test_that_jax_took_the_cpu_is_said(tmp_path):
    command = tiny.arguments(tmp_path / 'run', tmp_path / 'nothing')
    result = tiny.run(['-c', _FALLBACK, *command], JAX_PLATFORMS='')
    said = 'Falling back to cpu. To use it: pip install "jax[cuda13]"'
    assert result.returncode == 2 and said in result.stderr, result.stderr
    tool = ['beit_jax.tools.fit_tokenizer', '--kind=random_projection']
    output = f'--output={tmp_path / "tokenizer"}'
    result = tiny.run(['-c', _FALLBACK, *tool, output], JAX_PLATFORMS='')
    assert result.returncode == 0 and said in result.stderr, result.stderr


# as on a machine with the JAX for GPUs and without a GPU's driver
_PLUGIN = """
import logging
from beit_jax.runtime import tell_of_devices
tell_of_devices(), tell_of_devices()
try:
    raise RuntimeError('no driver')
except RuntimeError:
    logging.getLogger('jax._src.xla_bridge').exception('the plugin %s', 'fails')
"""


def test_a_plugin_that_fails_takes_a_line():
    done = subprocess.run(
        [sys.executable, '-c', _PLUGIN], capture_output=True, text=True, check=True
    )
    assert done.stderr == 'the plugin fails: no driver\n'


def test_deterministic(monkeypatch):
    """On a GPU a flag, which this XLA knows; elsewhere nothing."""
    monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=D')
    runtime.set_deterministic()
    assert os.environ['XLA_FLAGS'] == '--xla_dump_to=D' and not runtime.is_deterministic()
    monkeypatch.setattr(runtime, 'gpu_plugins', lambda: ['xla_cuda13'])
    assert not runtime.is_deterministic()
    runtime.set_deterministic()
    assert os.environ['XLA_FLAGS'] == '--xla_dump_to=D --xla_gpu_deterministic_ops=true'
    assert runtime.is_deterministic()
    started = 'import jax; print(jax.devices()[0].platform)'
    assert output(started, XLA_FLAGS=runtime.DETERMINISTIC).strip() == 'cpu'


def test_memory_that_runs_out():
    wanted = r'memory does not suffice \(.* allocating 4000\.00 GB.*\): lower config.batch_size'
    with pytest.raises(RequestError, match=wanted), runtime.machine_named():
        jnp.ones((10**6, 10**6)).block_until_ready()
    wanted = r'\(Unable to allocate 728. TiB.*\): lower config'
    with pytest.raises(RequestError, match=wanted), runtime.machine_named():
        np.ones((10**7, 10**7))
    with pytest.raises(RuntimeError, match='other'), runtime.machine_named():
        raise RuntimeError('other')


_LATE_CALLBACKS = """
import asyncio, ctypes
from beit_jax.runtime import quiet_abandoned_saves
quiet_abandoned_saves()
loop = asyncio.new_event_loop()
loop.close()
function = ctypes.CFUNCTYPE(None)
function(lambda: loop.call_soon_threadsafe(print))()
function(lambda: 1 / 0)()
"""


def test_threads_of_a_save_that_failed_print_no_stacks():
    """An error that nothing can catch, as in a thread of TensorStore: of others Python still
    tells."""
    done = subprocess.run(
        [sys.executable, '-c', _LATE_CALLBACKS], capture_output=True, text=True, check=True
    )
    assert 'Event loop is closed' not in done.stderr and 'ZeroDivisionError' in done.stderr
