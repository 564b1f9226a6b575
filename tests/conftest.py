"""Eight fake devices on the CPU, strict promotion, a compilation cache for the session, a hub."""

import ast
import functools
import importlib.util
import os
from pathlib import Path

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'  # no test asks Hugging Face's hub
# or a program under test would start anew (beit_jax/runtime.py)
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)


# of requirements-torch.txt, and timm, whose models need PyTorch
PEERS = {'torch', 'timm', 'transformers', 'dall_e', 'nbclient'}
TESTS = Path(__file__).parent
WITHOUT_TORCH = importlib.util.find_spec('torch') is None


@functools.cache
def needs_torch(file: Path) -> bool:
    """Whether a file imports PyTorch or what needs it, itself or by another file of the tests."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    if {name.partition('.')[0] for name in names} & PEERS:
        return True
    used = (TESTS.parent.joinpath(*name.split('.')).with_suffix('.py') for name in names)
    ours = (other for other in used if other.is_relative_to(TESTS) and other.is_file())
    return any(needs_torch(other) for other in ours)


def pytest_ignore_collect(collection_path):
    """Where PyTorch is not installed, the files that compare with it are left out."""
    file = collection_path / 'conftest.py' if collection_path.is_dir() else collection_path
    if WITHOUT_TORCH and file.suffix == '.py' and file.is_file() and needs_torch(file):
        return True
    return None


def pytest_report_header():
    return 'PyTorch is not installed: without the files that need it' if WITHOUT_TORCH else None


def pytest_configure(config):
    """Compilation is most of the time of tests that run for seconds; those that run for minutes
    want fast code."""
    if config.getoption('-m') != 'slow':
        # XLA's default (see beit_jax/runtime.py): code that is not optimised is slower
        os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + (
            ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
            ' --xla_cpu_experimental_ynn_fusion_type=+reduce'
        )


def pytest_collection_modifyitems(items):
    """Whole runs first: at the end a worker of pytest-xdist would be alone with them."""
    first = ('tests/train/test_faults', 'tests/train')
    items.sort(key=lambda item: [not item.nodeid.startswith(name) for name in first])


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
    """Runs that are stopped and started again compile the same step many times: in this process, in
    others of pytest-xdist, and in those that tests start."""
    shared = tmp_path_factory.getbasetemp()
    directory = str((shared.parent if 'PYTEST_XDIST_WORKER' in os.environ else shared) / 'compiled')
    jax.config.update('jax_compilation_cache_dir', directory)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    os.environ |= {
        'JAX_COMPILATION_CACHE_DIR': directory,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }


@pytest.fixture(scope='session')
def tokenizer_dir(tmp_path_factory):
    """A discrete VAE with random weights: 10 x 10 pixels to 5 x 5 tokens of 17 kinds."""
    from flax import nnx

    from beit_jax.models.tokenizers.dvae import DVAE, Config
    from beit_jax.weights.tokenizer import save_tokenizer

    config = Config(groups=2, blocks=1, width=8, decoder_input=8, vocabulary=17)
    directory = tmp_path_factory.mktemp('tokenizer')
    # one program; else one for each shape of each array and of what draws it
    draw = jax.jit(lambda: nnx.to_pure_dict(nnx.state(DVAE(config, rngs=nnx.Rngs(3)))))
    save_tokenizer(directory, 'dvae', config, 10, draw())
    return directory


@pytest.fixture(scope='module')
def one_device():
    """Runs of this process on one device: compiling for eight is most of what they would take;
    test_resume.py and test_mesh.py do it."""
    from beit_jax.train import run, sharding

    with pytest.MonkeyPatch.context() as patch:
        one = lambda config: sharding.make_mesh(config, jax.devices()[:1])
        patch.setattr(run, 'make_mesh', one)
        yield


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that huggingface_hub asks in this process, with an empty cache;
    nobody is logged in."""
    from huggingface_hub import constants

    from tests.hub_server import Hub

    with Hub() as server:
        for name, value in {
            'ENDPOINT': server.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': server.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HUB_CACHE': str(tmp_path / 'cache'),
            'HF_HUB_OFFLINE': False,
            'HF_HUB_DISABLE_XET': True,
            'HF_HUB_ETAG_TIMEOUT': 100,
            'HF_TOKEN_PATH': str(tmp_path / 'token'),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv('HF_TOKEN', raising=False)
        monkeypatch.chdir(tmp_path)
        yield server
