"""Files and folders of PyTorch weights, as they stand there, with the JSON beside.

They are safetensors or files of torch.save, whole or in shards. No PyTorch is needed, and nothing
in a file is run.
"""

import dataclasses
import json
from pathlib import Path
import re

import numpy as np

from beit_jax.errors import RequestError, check
from beit_jax.models.presets import Released, find_released
from beit_jax.weights.arrays import read_arrays
from beit_jax.weights.pytorch.torch_reader import read_torch_file
from beit_jax.whole_files import read_json, sha256

# the weights of a folder, in order of preference
WHOLE = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
# the entry of a safetensors header in which we keep what no JSON beside it says
METADATA = 'beit_jax'


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found at a path."""

    path: Path
    tensors: dict[str, np.ndarray]
    files: tuple[Path, ...]  # those that hold the tensors
    config: dict  # config.json
    processor: dict  # preprocessor_config.json
    metadata: dict  # our own, in the header of a safetensors file
    arguments: dict  # of the official code, in a file of torch.save
    unused: tuple[str, ...]  # other weights in the file, such as a moving average

    @property
    def released(self) -> Released | None:
        """The released weights that the file or folder is named after."""
        path = self.path.absolute()
        return find_released(path.name if path.is_dir() else path.stem)

    def checksums(self) -> dict[str, str]:
        """sha256 of each file that holds tensors."""
        return {file.name: sha256(file) for file in self.files}


def read_source(path: str | Path) -> Source:
    """Reads a file of SUFFIXES, an index of shards, or a folder with one of these.

    Raises:
      RequestError: none of these, damaged, or refused (see `torch_reader`).
    """
    check_exists(path)
    path = Path(path)
    weights = _find_weights(path) if path.is_dir() else path
    if weights.name.endswith('.index.json'):
        files = _read_shards(weights)
    else:
        files = {weights: _read_file(weights)}
    tensors, config, processor = {}, {}, {}
    for content in files.values():
        tensors |= content.pop('tensors')
    # a file of any other name may lie among strangers
    if path.is_dir() or weights.name in WHOLE:
        config = _read_json(weights.parent / 'config.json')
        processor = _read_json(weights.parent / 'preprocessor_config.json')
    said = next(iter(files.values()))  # beside the tensors, by the first file
    return Source(path, tensors, tuple(files), config=config, processor=processor, **said)


def check_exists(path: str | Path, key: str = '') -> None:
    """Raises RequestError where nothing is at a path, which the setting `key` gave; says what to do
    where it may be the name of a model on Hugging Face's hub."""
    message = f'{path}: there is no such checkpoint, work directory, file or folder of weights.'
    message = f'{key}={message}' if key else message
    name = re.fullmatch(r'(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)', str(path))
    if name and not Path(path).suffix:
        message += (
            " If it is a model on Hugging Face's hub, download it and give the folder: "
            f'pip install huggingface_hub; hf download {name[1]} --local-dir DIR'
        )
    check(Path(path).exists(), message)


def _find_weights(folder: Path) -> Path:
    for name in WHOLE:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    check(
        bool(found),
        f'{folder} holds neither a checkpoint nor a file of weights ({", ".join(SUFFIXES)}).',
    )
    check(
        len(found) == 1,
        f'{folder} holds several files of weights, {", ".join(file.name for file in found)}: give '
        'one of them.',
    )
    return found[0]


def _read_file(path: Path) -> dict:
    """The entries of `Source` that one file has."""
    if path.suffix != '.safetensors':
        tensors, arguments, unused = read_torch_file(path)
        return {'tensors': tensors, 'metadata': {}, 'arguments': arguments, 'unused': unused}
    tensors, header = read_arrays(path)
    try:
        metadata = json.loads(header.get(METADATA, '{}'))
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f'the header of {path} cannot be read ({str(error)[:200]}): it is damaged.'
        ) from error
    return {
        'tensors': tensors,
        'metadata': metadata if isinstance(metadata, dict) else {},
        'arguments': {},
        'unused': (),
    }


def _read_shards(index: Path) -> dict[Path, dict]:
    """{file: what it holds} of an index."""
    names = _read_json(index).get('weight_map')
    check(
        isinstance(names, dict)
        and bool(names)
        and all(isinstance(file, str) and Path(file).name == file for file in names.values()),
        f'{index} has no weight_map from tensors to files beside it: it is damaged.',
    )
    shards = {}
    for name in sorted(set(names.values())):
        file = index.parent / name
        check(file.is_file(), f'{index} names {name}, which is not there: download all shards.')
        shards[file] = _read_file(file)
        promised = {tensor for tensor, place in names.items() if place == name}
        differing = sorted(promised ^ shards[file]['tensors'].keys())
        check(
            not differing,
            f'{file} does not hold the tensors that {index.name} says: {", ".join(differing[:3])}.',
        )
    return shards


def _read_json(path: Path) -> dict:
    return read_json(path, 'write or download it again') if path.is_file() else {}
