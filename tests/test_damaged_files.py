"""Every small file that a run or a tool reads, damaged at random or made up: what comes of it is an
answer or an error for the user, in little memory."""

from collections.abc import Callable
import dataclasses
import gc
import importlib.util
import io
import json
from pathlib import Path
import shutil
import struct
import time
from types import SimpleNamespace
from unittest import mock
import zipfile
import zlib

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.stores import manifest
from beit_jax.errors import RequestError, StorageError
from beit_jax.inference.tokenizing import Export
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import config_option, curves, export_weights
from beit_jax.train.workdir.changes import config_changes
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.token_cache import TokenCache
from beit_jax.weights.checkpoint import load_params
from beit_jax.weights.load import load_weights
from beit_jax.weights.pytorch.torch_reader import read_torch_file
from beit_jax.weights.tokenizer import load_tokenizer
from tests import tiny
from tests.damage import damaged
from tests.tools.call import call

MEMORY, SECONDS = (
    200e6,
    20,
)  # beyond twice the file (JSON: 40 times); for one read, on a machine that is busy
QUICK, MANY = 36, 1050  # cases a file: 1,000 and 20,000 in all
SLOW_TO_READ = {'huggingface', 'shards', 'timm', 'unilm', 'tokenizer', 'run'}  # a fifth of them


@dataclasses.dataclass(frozen=True)
class Case:
    """A file in a folder of its own and what reads it."""

    folder: str
    file: str
    read: Callable[[Path], object]  # of a copy of the folder
    # (part that is damaged, how the file is made of it), where checksums would refuse all else
    part: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]] = lambda data: (data, bytes)
    before: Callable[[Path], object] | None = None  # done first in place of `read`, once


def header(data):
    """The JSON of a safetensors file."""
    end = 8 + struct.unpack('<Q', data[:8])[0]
    return data[8:end], lambda part: struct.pack('<Q', len(part)) + part + data[end:]


def pickled(data):
    """The pickle of a file of torch.save."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith('data.pkl'))

    def whole(part):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as archive:
            for other, content in entries.items():
                archive.writestr(other, part if other == name else content)
        return out.getvalue()

    return entries[name], whole


def read_weights(folder):
    load_weights(str(folder))


def read_checkpoint(folder):
    load_params(str(folder))


def read_config(folder):
    config_changes(task_config(tiny.classify_settings()), folder)


def read_config_of_tool(folder):
    config_option.read(SimpleNamespace(config=str(folder / 'config.json'), overrides=[]))


def read_metrics(folder):
    MetricsWriter(folder, 3, 5, active=True).close()
    curves.read_metrics(folder / 'metrics.jsonl')


def read_source(config, split='train'):
    source = open_source(config, split)
    for record in source.read_many(0, len(source)):
        assert isinstance(record, tuple | OSError)


def read_tfds(folder):
    read_source(DataConfig(name='tfds', path=str(folder)))


def read_tfds_list(folder):
    read_source(DataConfig(name='tfds', path=str(folder / 'set'), index=str(folder / 'index')))


def read_folder_list(folder):
    read_source(DataConfig(name='folder', path=str(folder / 'set'), index=str(folder / 'index')))


def stop_listing(folder):
    """Leaves what a process that is killed leaves."""
    stop = mock.patch.object(manifest, 'write', side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt):
        read_folder_list(folder)


def read_cache(folder):
    cache = TokenCache(folder, {'of': {'seed': 3}}, 7, 2, 5, 14)
    if cache.complete_at <= 14:
        cache.read(np.arange(14, dtype=np.uint32))


def read_export(folder):
    Export(folder / 'ids.npy', {'of': 'it'}, 7, 5)


CASES = {
    'config of transformers': Case('huggingface', 'config.json', read_weights),
    'preprocessor': Case('huggingface', 'preprocessor_config.json', read_weights),
    'safetensors': Case('huggingface', 'model.safetensors', read_weights),
    'header': Case('huggingface', 'model.safetensors', read_weights, header),
    'index of shards': Case('shards', 'model.safetensors.index.json', read_weights),
    'config of timm': Case('timm', 'config.json', read_weights),
    'our header': Case('unilm', 'model.safetensors', read_weights, header),
    'archive': Case('pth', 'model.pth', lambda folder: read_torch_file(folder / 'model.pth')),
    'pickle': Case('pth', 'model.pth', lambda it: read_torch_file(it / 'model.pth'), pickled),
    'tokenizer.json': Case('tokenizer', 'tokenizer.json', lambda it: load_tokenizer(str(it))),
    'tokenizer': Case('tokenizer', 'tokenizer.safetensors', lambda it: load_tokenizer(str(it))),
    'features': Case('tfds', 'features.json', read_tfds),
    'dataset_info': Case('tfds', 'dataset_info.json', read_tfds),
    'label names': Case('tfds', 'label.labels.txt', read_tfds),
    'records': Case('tfds', '*train*00001-of-00003', read_tfds),
    'list of records': Case('listed_tfds', 'index/*.list', read_tfds_list),
    'list of files': Case('listed_folder', 'index/*.list', read_folder_list),
    'list half made': Case('listed_folder', 'index/*.part', read_folder_list, before=stop_listing),
    'token cache json': Case('cache', 'ids-00000.json', read_cache),
    'token cache': Case('cache', 'ids-00000.npy', read_cache),
    'checksums of the cache': Case('cache', 'ids-00000.crc.npy', read_cache),
    'export json': Case('export', 'ids.npy.progress', read_export),
    'export': Case('export', 'ids.npy.partial', read_export),
    'description': Case('run', 'checkpoints/1/_CHECKPOINT_METADATA', read_checkpoint),
    'tree of a checkpoint': Case('run', 'checkpoints/1/state/_METADATA', read_checkpoint),
    'arrays of a checkpoint': Case('run', 'checkpoints/1/state/array_meta*/*', read_checkpoint),
    'manifest': Case('run', 'checkpoints/1/state/manifest.ocdbt', read_checkpoint),
    'metrics': Case('trained', 'metrics.jsonl', read_metrics),
    'config of a run': Case('trained', 'config.json', read_config),
    'config of a tool': Case('trained', 'config.json', read_config_of_tool),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory, tokenizer_dir):
    """A folder for each `Case.folder`."""
    root = tmp_path_factory.mktemp('good')
    task = make_task(task_config(tiny.classify_settings()).resolve(37, ('ant', 'bee', 'cat')))
    tiny.save_checkpoint(root / 'run', task, classes=('ant', 'bee', 'cat'))
    for dialect in ('huggingface', 'timm', 'unilm'):
        call(export_weights, input=root / 'run', format=dialect, output=root / dialect)
    (root / 'pth').mkdir()
    (root / 'unilm' / 'model.pth').rename(root / 'pth' / 'model.pth')
    shards = root / 'shards'
    shutil.copytree(root / 'huggingface', shards)
    names = json.loads(header((shards / 'model.safetensors').read_bytes())[0]).keys()
    names = dict.fromkeys(names - {'__metadata__'}, 'model-1.safetensors')
    (shards / 'model.safetensors').rename(shards / 'model-1.safetensors')
    (shards / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': names}))
    shutil.copytree(tokenizer_dir, root / 'tokenizer')
    if importlib.util.find_spec('tensorflow'):  # which TFDS writes records by
        from tests.data.sources.test_tfrecords import prepare

        shutil.copytree(prepare(root / 'made')[1], root / 'tfds')
        shutil.copytree(root / 'tfds', root / 'listed_tfds' / 'set')
    for i in range(7):
        file = root / 'listed_folder' / 'set' / 'ab'[i % 2] / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (5 + i, 7), (i, 2, 3)).save(file)
    (root / 'trained').mkdir()
    settings = json.dumps(dataclasses.asdict(task_config(tiny.classify_settings())))
    (root / 'trained' / 'config.json').write_text(settings)
    rows = [{'step': step, 'loss': 1 / step, 'eval/loss': None} for step in range(1, 6)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (root / 'trained' / 'metrics.jsonl').write_text(lines)
    (root / 'cache').mkdir()
    cache = TokenCache(root / 'cache', {'of': {'seed': 3}}, 7, 2, 5, 0)
    cache.put(np.arange(14), np.arange(70, dtype=np.uint16).reshape(14, 5))
    cache.flush(14)
    export = Export(root / 'export' / 'ids.npy', {'of': 'it'}, 7, 5)
    export.write(np.arange(20, dtype=np.uint16).reshape(4, 5), [1])
    return root


def memory(what):
    """Bytes of this process: now (VmRSS) or at most since the last `forget` (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    line = next(line for line in lines if line.startswith(what))
    return 1024 * int(line.split()[1])


def forget():
    Path('/proc/self/clear_refs').write_text('5')


def try_many(case, good, directory, count, seed):
    root = directory / 'copy'
    if not (good / case.folder).exists():
        pytest.skip('takes TensorFlow')
    shutil.copytree(good / case.folder, root)
    (case.before or case.read)(root)  # makes lists too
    (file,) = root.glob(case.file)
    part, whole = case.part(file.read_bytes())
    rng, kept = np.random.default_rng(seed), {at: at.read_bytes() for at in files(root)}
    for number in range(count):
        content = whole(damaged(part, rng))
        for at in files(root):
            if at not in kept:
                at.unlink()
        for at, data in kept.items():
            if not at.is_file() or at.read_bytes() != data:
                at.write_bytes(data)
        file.write_bytes(content)
        forget()
        before, start, message = memory('VmRSS'), time.process_time(), ''
        try:
            case.read(root)
        except (RequestError, StorageError) as error:
            message = str(error)
        except BaseException as error:
            (directory / 'culprit').write_bytes(content)
            raise AssertionError(f'case {number}: {directory / "culprit"}') from error
        grown, seconds = memory('VmHWM') - before, time.process_time() - start
        shown = f'case {number}: {grown:,} bytes, {seconds:.1f} s, {message[:99]}'
        # of JSON, where `{},` is a Python object of 64 bytes
        times = 40 if content[:1] in (b'{', b'[') else 2
        assert grown < times * len(content) + MEMORY and seconds < SECONDS, shown
        assert len(message) < 5000, shown
    # coroutines of reads that failed: one that ends while another test is in `ast.parse` makes
    # Python 3.11 raise SystemError there (CPython's issue 106905)
    gc.collect()


def files(root):
    return [at for at in root.rglob('*') if at.is_file()]


@pytest.mark.parametrize('name', CASES)
def test_a_few(name, good, tmp_path):
    try_many(CASES[name], good, tmp_path, QUICK, zlib.crc32(name.encode()))


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_many(name, good, tmp_path):
    count = MANY // 5 if CASES[name].folder in SLOW_TO_READ else MANY
    try_many(CASES[name], good, tmp_path, count, [3, zlib.crc32(name.encode())])
