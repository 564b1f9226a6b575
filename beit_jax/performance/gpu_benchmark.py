"""All that is to be measured on a GPU, in the order of its worth, for a machine that is at hand for
minutes: each part is a process of its own with its own time, and what it has measured is on disk
when it ends, or is ended."""

from collections.abc import Callable
import contextlib
import json
import os
from pathlib import Path
import subprocess
import sys
import time
import typing

from beit_jax import whole_files
from beit_jax.machines.processor import machine
from beit_jax.performance import gpu_parts
from beit_jax.performance.gpu_report import report

_RESULT, _TABLE, _LOG = 'gpu.json', 'gpu.md', 'gpu.log'
_DUMP = '--xla_dump_to={output}/target --xla_dump_hlo_module_re=.*beit_target.*'
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


class Part(typing.NamedTuple):
    """A function of `gpu_parts`, its time, and the flags for XLA that its process has."""

    name: str
    function: Callable
    seconds: int  # at most
    flags: str = ''


PARTS = (
    Part('numerics', gpu_parts.numerics, 60),
    Part('base', gpu_parts.base, 150, '--xla_gpu_dump_autotune_results_to={output}/autotuning.txt'),
    Part('target', gpu_parts.target, 20, _DUMP),
    Part('large', gpu_parts.large, 75),
    Part('tokenizer', gpu_parts.tokenizer, 45),
    Part('no Triton products', gpu_parts.whole, 50, '--xla_gpu_enable_triton_gemm=false'),
    Part('latency hiding', gpu_parts.whole, 50, '--xla_gpu_enable_latency_hiding_scheduler=true'),
    Part('same bits', gpu_parts.same_bits, 40),
    Part('same bits, again', gpu_parts.same_bits, 30),
    Part('same bits, deterministic', gpu_parts.same_bits, 40, _DETERMINISTIC),
    Part('same bits, deterministic, again', gpu_parts.same_bits, 30, _DETERMINISTIC),
    Part('profile', gpu_parts.profile, 40),
)


def benchmark_gpu(output: Path, seconds: float, rehearse: bool) -> str:
    """Tables of what was measured, after the parts that `output` does not hold yet, in `seconds`.

    Writes `gpu.json`, `gpu.md` (the tables) and `gpu.log` anew after each part, and what XLA tells
    of the device: the results of its autotuning and its description of the target. rehearse: the
    same with tiny sizes, on any device, in as much time as it takes.
    """
    output, began = output.absolute(), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    file = output / _RESULT
    result = {'machine': machine(), 'rehearsal': rehearse, 'parts': {}}
    if file.exists():
        result = json.loads(file.read_text())
    for part in PARTS:
        if result['parts'].get(part.name, {}).get('whole'):
            continue
        left = seconds - (time.monotonic() - began)
        if left < 5:
            break
        found = _run(part, output, left if rehearse else min(part.seconds, left), rehearse)
        result['parts'][part.name] = found
        whole_files.write(file, result, indent=1)
        whole_files.replace(output / _TABLE, report(result))
    return report(result)


def _run(part: Part, output: Path, seconds: float, rehearse: bool) -> dict:
    """What a part has measured: {'whole': whether it ended by itself, ...}."""
    lines = output / f'{part.name.replace(" ", "_").replace(",", "")}.jsonl'
    lines.unlink(missing_ok=True)
    flags = os.environ.get('XLA_FLAGS', ''), part.flags.format(output=output)
    environment = os.environ | {
        'XLA_FLAGS': ' '.join(filter(None, flags)),
        # a program that two parts run is compiled once
        'JAX_COMPILATION_CACHE_DIR': str(output / 'compiled'),
        # or JAX leaves PyTorch a quarter of the memory
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    }
    if rehearse:  # PyTorch's threads wait for one another where there are fewer cores
        environment['OMP_NUM_THREADS'] = '1'
    module, name = part.function.__module__, part.function.__name__
    command = [sys.executable, '-m', module, name, str(lines), *['--rehearse'] * rehearse]
    print(f'{part.name}: at most {seconds:.0f} s', flush=True)
    began, status = time.monotonic(), None
    with (output / _LOG).open('ab') as log:
        log.write(f'== {part.name}: {" ".join(command)}\n'.encode())
        log.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = subprocess.run(
                command, stdout=log, stderr=log, env=environment, timeout=seconds, check=False
            ).returncode
    found = {}
    for line in lines.read_text().splitlines(keepends=True) if lines.exists() else ():
        if line.endswith('\n'):  # the last one of a process that was ended may not be whole
            found |= json.loads(line)
    took = {'whole': status == 0, 'status': status, 'seconds': round(time.monotonic() - began, 1)}
    print(f'{part.name}: {"done" if status == 0 else f"status {status}"}, {took["seconds"]} s')
    return took | {'flags': part.flags, 'found': found}
