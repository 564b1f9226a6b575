"""What a process has of its machine: names that it can print, flags for XLA before JAX starts,
huge pages for a step on a CPU, programs that are compiled once, streams that nobody need hear;
and a line where it has too little."""

from collections.abc import Iterator
import contextlib
from importlib.metadata import version
import importlib.util
import io
import logging
import os
from pathlib import Path
import pkgutil
import re
import sys

from beit_jax.errors import RequestError, check

_LIBRARY = 'xla_cpu_experimental_ynn_fusion_type'
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
_HUGETLB = 'glibc.malloc.hugetlb'
LESS_MEMORY = (
    'lower config.batch_size (of a tool: --batch_size), raise config.accumulate_steps or '
    'config.mesh.fsdp, or set config.model.remat=true'
)


def print_any_name() -> None:
    """Has stdout take names of files that are no text, given on the command line, as stderr does:
    what cannot be encoded is printed as an escape."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors='backslashreplace')


def set_xla_flags() -> None:
    """On a CPU, keeps sums and maxima from the library YNNPACK, where a small model's step takes a
    third longer (docs/benchmarks.md; JAX issue 37465). A user's own setting of that flag stays.
    Only for the versions that were tried: XLA ends a process at a flag that it does not know, and a
    later one may be fast by itself."""
    flags = os.environ.get('XLA_FLAGS', '')
    jaxlib = tuple(int(number) for number in version('jaxlib').split('.')[:2])
    if (0, 10) <= jaxlib <= (0, 12) and _LIBRARY not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} --{_LIBRARY}=-reduce'.strip()


def tell_of_devices() -> None:
    """What JAX says of accelerators that it does not use reaches the user in a line, with what to
    do."""
    logger = logging.getLogger('jax._src.xla_bridge')
    if _in_a_line not in logger.filters:
        logger.addFilter(_in_a_line)


def _in_a_line(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    if record.exc_info:  # a plugin that does not start, with its stacks
        said += f': {record.exc_info[1]}'
    if 'Falling back to cpu' in said:
        package = 'jax[tpu]' if 'TPU' in said else 'jax[cuda13]'
        said += f' To use it: pip install "{package}" (docs/install.md).'
    record.msg, record.args, record.exc_info = said, (), None
    return True


def gpu_plugins() -> list[str]:
    """What is installed by which JAX runs on GPUs: ['xla_cuda13'], or []."""
    found = importlib.util.find_spec('jax_plugins')
    modules = pkgutil.iter_modules(found.submodule_search_locations) if found else ()
    return [module.name for module in modules if re.search('cuda|rocm', module.name)]


def set_deterministic() -> None:
    """Has XLA compile for GPUs only what gives the same bits each time. It then takes the first
    algorithm of each product instead of the one that it measured to be the fastest, so that there
    are no measurements to be kept. Other devices are not concerned, and get no flag."""
    if gpu_plugins():
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DETERMINISTIC}'.strip()


def is_deterministic() -> bool:
    """Whether XLA compiles for a GPU only what gives the same bits each time."""
    return DETERMINISTIC in os.environ.get('XLA_FLAGS', '').split() and bool(gpu_plugins())


def take_huge_pages() -> None:
    """Starts the program anew with glibc's large blocks in huge pages, before anything else is
    done. XLA takes what a step on a CPU needs in one block and gives it back, so that each step
    has it cleared anew, and 4 KB at a time that is up to a third of a step (docs/benchmarks.md).

    Nothing is done where there is an accelerator, where Linux does not leave it to programs
    (`madvise`), where GLIBC_TUNABLES has that setting, and where Python was started for something
    else, a notebook or a debugger, that runs the program.
    """
    tunables, words = os.environ.get('GLIBC_TUNABLES', ''), sys.orig_argv
    if _HUGETLB in tunables:
        return
    left_to_programs = _HUGE_PAGES.is_file() and '[madvise]' in _HUGE_PAGES.read_text()
    accelerators = gpu_plugins() or importlib.util.find_spec('libtpu')
    module = words[words.index('-m') + 1] if '-m' in words else ''
    started_for_it = sys.argv[0] in words or module.partition('.')[0] == 'beit_jax'
    wanted = left_to_programs and started_for_it and not (accelerators or sys.gettrace())
    if wanted:
        os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, (tunables, f'{_HUGETLB}=1')))
        os.execv(sys.executable, [sys.executable, *words[1:]])


def refuse_x64() -> None:
    """Raises RequestError where JAX is asked for float64."""
    import jax

    check(
        not jax.config.jax_enable_x64,
        'JAX_ENABLE_X64 is set: unset it; a run computes in config.compute_dtype and float32.',
    )


def keep_programs(workdir: Path) -> None:
    """Has JAX keep what it compiles in the work directory, for the next start, unless it keeps it
    elsewhere (JAX_COMPILATION_CACHE_DIR)."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
        # also the many programs that take less than JAX's second: together they take as long
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


class _Unheard(io.FileIO):
    """A stream whose reader may be gone or whose disk may be full: what it does not take is
    dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def run_unheard() -> None:
    """What a run says is not what it does: stdout and stderr may be closed (`>&-`), full, or a pipe
    to what has ended, and names that are not UTF-8 are written with backslashes."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get what is said
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if number:
            said = getattr(sys, name)
            buffer = io.BufferedWriter(_Unheard(number, 'w', closefd=False))
            encoding = said.encoding if said else 'utf-8'
            stream = io.TextIOWrapper(buffer, encoding, 'backslashreplace', line_buffering=True)
            setattr(sys, name, stream)


@contextlib.contextmanager
def machine_named() -> Iterator[None]:
    """Raises RequestError where what the block raises is the machine's fault: memory that runs out,
    an accelerator that is not there."""
    try:
        yield
    except (AssertionError, MemoryError, RuntimeError) as error:
        line = _out_of_memory(error) or _no_device()
        if not line:
            raise
        raise RequestError(line) from error


def _out_of_memory(error: Exception) -> str:
    import jax

    text = ' '.join(str(error).split())
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in text
    if not (isinstance(error, MemoryError) or (exhausted and 'memory' in text.lower())):
        return ''
    # XLA's bytes, in GB
    text = re.sub(r'(\d{7,}) bytes', lambda found: f'{int(found[1]) / 1e9:.2f} GB', text)
    return f'memory does not suffice ({text[:300] or "an allocation failed"}): {LESS_MEMORY}.'


def _no_device() -> str:
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        wanted, reason = os.environ.get('JAX_PLATFORMS', ''), ' '.join(str(error).split())
        return (
            f'JAX has no device for JAX_PLATFORMS={wanted}{reason and f" ({reason[:300]})"}: '
            'pip install "jax[cuda13]" or "jax[tpu]" on a machine that has one, or unset '
            'JAX_PLATFORMS to take what there is.'
        )
    return ''


def quiet_abandoned_saves() -> None:
    """Threads of TensorStore that outlive a save that failed call an event loop that is closed, and
    Python would print a stack for each. The run tells of the save itself."""
    tell = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != 'Event loop is closed':
            tell(unraisable)

    sys.unraisablehook = hook
