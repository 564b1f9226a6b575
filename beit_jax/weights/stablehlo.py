"""A model as programs in StableHLO (`jax.export`) with its weights beside: for CPUs, TPUs and
NVIDIA's GPUs, for any number of pictures. Who runs them needs JAX and NumPy, and
nothing of this package."""

from collections.abc import Callable, Mapping
import json
from pathlib import Path

from flax import traverse_util
import jax
from jax import export
import numpy as np

from beit_jax.models.platform import traced_for
from beit_jax.weights.pytorch.card import model_card
from beit_jax.weights.stored import Stored
from beit_jax.whole_files import sha256, whole_directory

FORMAT = 'stablehlo'
PLATFORMS = ('cpu', 'tpu', 'cuda')
WEIGHTS, PREPROCESSING = 'weights.npz', 'preprocessing.json'


def flat(params: dict) -> dict[str, np.ndarray]:
    """The parameters by their paths: what the programs take."""
    arrays = traverse_util.flatten_dict(params, sep='/')
    return {name: np.asarray(array) for name, array in arrays.items()}


def write_folder(
    path: Path,
    model: Stored,
    programs: Mapping[str, Callable],
    compute_dtype: str,
    metrics: dict,
) -> dict[str, str]:
    """Writes a new directory: a program a file, `weights.npz`, `preprocessing.json`, a card.

    Args:
      programs: name -> a function of (params, pictures [B, height, width, C]) as they are stored.
      compute_dtype: of the products.
      metrics: what held-out images gave.

    Returns:
      {name of a file: its SHA-256}.

    Raises:
      RequestError: there is something at `path` already.
    """
    weights, shapes = flat(model.params), {}
    with whole_directory(path) as directory:
        for name, function in programs.items():
            program = _exported(function, weights, model)
            shapes[name] = jax.tree.map(
                lambda array: f'{array.dtype}{list(array.shape)}',
                jax.tree.unflatten(program.out_tree, program.out_avals),
            )
            (directory / f'{name}.{FORMAT}').write_bytes(program.serialize())
        np.savez(directory / WEIGHTS, **weights)
        said = preprocessing(model) | {'compute_dtype': compute_dtype, 'programs': shapes}
        text = json.dumps(said, indent=2, ensure_ascii=False)
        (directory / PREPROCESSING).write_text(text + '\n')
        checksums = {file.name: sha256(file) for file in sorted(directory.iterdir())}
        notes = [*model.notes, f'programs: {", ".join(programs)}, for {", ".join(PLATFORMS)}']
        card = model_card(
            FORMAT, model.description, metrics, checksums, notes, model=next(iter(programs))
        )
        (directory / 'README.md').write_text(card)
    return checksums


def _exported(function, weights, model):
    (batch,) = export.symbolic_shape('batch')
    channels = model.pixels.num_channels
    pictures = jax.ShapeDtypeStruct((batch, *model.shape, channels), model.pixels.dtype)
    arrays = {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in weights.items()}

    def program(weights, pictures):
        return function(traverse_util.unflatten_dict(weights, sep='/'), pictures)

    # in plain JAX, whatever this process has: the kernels of one device are not those of another
    return export.export(jax.jit(traced_for('cpu', program)), platforms=PLATFORMS)(arrays, pictures)


def preprocessing(model: Stored) -> dict:
    """How a picture becomes what the programs take. JSON."""
    return {
        'image_size': list(model.shape),
        'channels': model.pixels.num_channels,
        'dtype': str(model.pixels.dtype),
        'layout': 'NHWC',
        'box': 'in the middle of the picture: the largest of the shape of image_size, times crop',
        'crop': model.crop,
        'resize': 'the box to image_size, in one step',
        'interpolation': 'bicubic',
        'antialias': True,
        'rescale': 1 / model.pixels.top,
        'mean': list(model.architecture['mean']),
        'std': list(model.architecture['std']),
        'normalized': 'by the programs: they take pixels as they are stored',
        'problem_type': model.problem_type,
        'classes': list(model.classes),
    }
