"""The parameters of a checkpoint of this package, and whether they are those that a model wants."""
from collections.abc import Callable
import hashlib
from pathlib import Path

from flax import traverse_util
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from beit_jax.config import check


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is a checkpoint of this package, or a work directory with one."""
    return (Path(path) / 'state').is_dir() or bool(_steps(Path(path)))


def find_checkpoint(path: str) -> Path:
    """The directory of one checkpoint: `path` itself, or the newest one of the work directory `path`.

    Raises:
      RequestError: neither is there.
    """
    directory = Path(path).absolute()
    if (directory / 'state').is_dir():
        check(directory.name.isdigit(), f'{path}: a checkpoint keeps its number as its name; rename the directory to one.')
        return directory
    steps = _steps(directory)
    check(bool(steps), f'{path} is neither a checkpoint nor a work directory with one: give W or W/checkpoints/STEP.')
    return max(steps, key=lambda entry: int(entry.name))


def _steps(workdir: Path) -> list[Path]:
    return [entry for entry in workdir.glob('checkpoints/*') if entry.name.isdigit() and (entry / 'state').is_dir()]


def load_params(path: str, place: Callable | None = None):
    """The parameters alone of a checkpoint (see `find_checkpoint`): their moving average where the run kept one.

    Args:
      path: a checkpoint or a work directory.
      place: from the abstract parameters (nested dict of jax.ShapeDtypeStruct) to the shardings of each; None: the first device.

    Returns:
      (parameters as a nested dict of arrays, the checkpoint's description).
    """
    directory = find_checkpoint(path)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        checkpointer = ocp.training.Checkpointer(directory.parent)
        metadata = checkpointer.metadata(int(directory.name))
        name = 'ema' if 'ema' in metadata.metadata else 'params'
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.metadata[name])
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = place(abstract) if place else jax.tree.map(lambda _: one, abstract)
        abstract = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings)
        params = checkpointer.load(int(directory.name), {name: abstract})[name]
        checkpointer.close()
    return params, metadata.custom_metadata


def check_params(abstract, params, source: str) -> None:
    """Raises RequestError where `params` (arrays) do not have the names, shapes and dtypes of `abstract`."""
    check_same(shapes(abstract), shapes(params), source)


def digest(params, label: str = '') -> str:
    """sha256 of `label` and of a nested dict of arrays with its names."""
    found = hashlib.sha256(label.encode())
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep='/').items()):
        found.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def path_string(path) -> str:
    """A key path of jax.tree_util as 'encoder/blocks/00/norm1/scale'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def shapes(tree) -> dict:
    """{path: (shape, dtype)} of the leaves of a tree."""
    return {path_string(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_same(wanted: dict, found: dict, source: str) -> None:
    """Raises RequestError where two results of `shapes` differ; names the first three arrays."""
    wrong = [f'{name} is {_show(found.get(name))}, the config wants {_show(wanted.get(name))}'
             for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    check(not wrong, f'{source} is of another model ({len(wrong)} arrays differ): {"; ".join(wrong[:3])}{"; ..." if len(wrong) > 3 else ""}. '
          'Change config.model to fit it, or use another checkpoint or work directory.')


def _show(shape_and_dtype) -> str:
    return f'{shape_and_dtype[1]}{list(shape_and_dtype[0])}' if shape_and_dtype else 'missing'
