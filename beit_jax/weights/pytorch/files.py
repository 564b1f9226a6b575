"""Files and folders of PyTorch weights, as they stand there, with the JSON beside.

They are safetensors or files of torch.save, whole or in shards. No PyTorch is needed, and nothing
in a file is run.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from beit_jax.errors import RequestError, check
from beit_jax.models.presets import Released, find_released
from beit_jax.weights.arrays import read_arrays
from beit_jax.weights.contents import BESIDE, SUFFIXES, WHOLE, find_weights
from beit_jax.weights.hub import local, repository
from beit_jax.weights.pytorch.torch_reader import read_torch_file
from beit_jax.whole_files import read_json, sha256

# the entry of a safetensors header in which we keep what no JSON beside it says
METADATA = 'beit_jax'


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found at a path."""

    path: str  # as it was given
    name: str  # of the file, without its ending, of the folder, or of the repository
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
        return find_released(self.name)

    def checksums(self) -> dict[str, str]:
        """sha256 of each file that holds tensors."""
        return {file.name: sha256(file) for file in self.files}


def read_source(path: str | Path, found: Path | None = None) -> Source:
    """Reads a file of `contents.SUFFIXES`, an index of shards, or a folder with one of these.

    found: what `hub.local` has found of this path, where it was asked.

    Raises:
      RequestError: none of these, damaged, or refused (see `torch_reader`).
    """
    given, path = path, found or local(path)
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
        config, processor = (_read_json(weights.parent / name) for name in BESIDE)
    said = next(iter(files.values()))  # beside the tensors, by the first file
    which = str(given), _name(given), tensors, tuple(files)
    return Source(*which, config=config, processor=processor, **said)


def _name(path: str | Path) -> str:
    """What a file or folder is called, or a repository of the hub."""
    of_hub = repository(path)
    place = Path(of_hub.inside or of_hub.id) if of_hub else Path(path).absolute()
    return place.stem if place.suffix in SUFFIXES else place.name


def _find_weights(folder: Path) -> Path:
    return folder / find_weights([entry.name for entry in folder.iterdir()], str(folder))


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
