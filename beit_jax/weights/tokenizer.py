"""A tokenizer on disk: a directory with `tokenizer.safetensors` (arrays by path) and `tokenizer.json` (the architecture)."""
import dataclasses
import json
from pathlib import Path

from flax import nnx, traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from beit_jax.config import check, from_mapping
from beit_jax.errors import RequestError
from beit_jax.models.dvae import DVAE, DVAEConfig
from beit_jax.models.tokenizers import DVAETokenizer

WEIGHTS, DESCRIPTION = 'tokenizer.safetensors', 'tokenizer.json'


def save_tokenizer(directory: Path, config: DVAEConfig, image_size: int, params) -> None:
    """Writes the parameters of a `DVAE` (nested dict) and its architecture."""
    directory.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(params, sep='/').items()}
    safetensors.numpy.save_file(flat, directory / WEIGHTS)
    description = {'kind': 'dvae', 'image_size': image_size, 'architecture': dataclasses.asdict(config)}
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + '\n')


def load_tokenizer(path: str, *, dtype=jnp.float32):
    """(tokenizer, params) from a directory that `save_tokenizer` wrote.

    Raises:
      RequestError: no such tokenizer, or arrays that do not fit its architecture.
    """
    directory = Path(path)
    for name in (WEIGHTS, DESCRIPTION):
        check((directory / name).is_file(), f'config.tokenizer.path={path}: there is no {name}. Train a tokenizer '
              '(python main.py --config=configs/quickstart/tokenizer.py --workdir=W) and give W/tokenizer.')
    try:
        description = json.loads((directory / DESCRIPTION).read_text())
        image_size, architecture = int(description['image_size']), dict(description['architecture'])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f'{directory / DESCRIPTION} cannot be read ({error!r}): it is damaged, write it again.') from error
    try:
        flat = safetensors.numpy.load_file(directory / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise RequestError(f'{directory / WEIGHTS} cannot be read ({error}): it is damaged, write it again.') from error
    config = from_mapping(DVAEConfig, architecture, 'architecture.')
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: DVAE(config, rngs=nnx.Rngs(0)))))
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in traverse_util.flatten_dict(abstract, sep='/').items()}
    found = {name: (array.shape, array.dtype) for name, array in flat.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    check(not wrong, f'{directory / WEIGHTS} does not fit {DESCRIPTION}: {", ".join(wrong[:5])}{" ..." if len(wrong) > 5 else ""}.')
    return DVAETokenizer(config, image_size, dtype=dtype), traverse_util.unflatten_dict(flat, sep='/')
