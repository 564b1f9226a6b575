"""Trees of arrays by path: their names, shapes and digests, and whether two are alike."""

import hashlib

from flax import traverse_util
import jax
import numpy as np

from beit_jax.errors import check


def path_string(path) -> str:
    """A key path of jax.tree_util as 'encoder/blocks/00/norm1/scale'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def leaves_by_path(tree) -> dict:
    """{path: leaf}."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(tree) -> dict:
    """{path: (shape, dtype)} of the leaves of a tree."""
    leaves = leaves_by_path(tree)
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()}


def check_params(abstract, params, source: str) -> None:
    """Raises RequestError where the arrays have not the names, shapes and dtypes of `abstract`."""
    check_same(shapes(abstract), shapes(params), source)


def digest(params, label: str = '') -> str:
    """sha256 of `label` and of a nested dict of arrays with its names."""
    found = hashlib.sha256(label.encode())
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep='/').items()):
        found.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def check_same(wanted: dict, found: dict, source: str) -> None:
    """Raises RequestError where two results of `shapes` differ; names the first three arrays."""
    wrong = []
    for name in sorted(wanted.keys() | found.keys()):
        here, there = found.get(name), wanted.get(name)
        if here != there:
            wrong.append(f'{name} is {_show(here)}, the config wants {_show(there)}')
    check(
        not wrong,
        f'{source} is of another model ({len(wrong)} arrays differ): '
        f'{"; ".join(wrong[:3])}{"; ..." if len(wrong) > 3 else ""}. Change config.model to fit '
        'it, or use another checkpoint or work directory.',
    )


def check_finite(params, source: str) -> None:
    """Raises RequestError where arrays of a nested dict have numbers that are NaN or infinite,
    which would pass for results; names the first three."""
    bad = {path: np.count_nonzero(~np.isfinite(x)) for path, x in leaves_by_path(params).items()}
    wrong = [f'{path} has {count}' for path, count in sorted(bad.items()) if count]
    check(
        not wrong,
        f'{source} has numbers that are NaN or infinite: {", ".join(wrong[:3])}'
        f'{", ..." if len(wrong) > 3 else ""}. It is damaged, or of a training that failed: make '
        'or download it again.',
    )


def _show(shape_and_dtype) -> str:
    return f'{shape_and_dtype[1]}{list(shape_and_dtype[0])}' if shape_and_dtype else 'missing'
