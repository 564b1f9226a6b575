"""Whether a checkpoint is what was saved.

There is a checksum of each array, computed on the devices where it lies, and one of the
description: one flipped byte in a file would otherwise restore without a word. The checksum of
an array is a sum over its elements, each mixed with its place, in integers: it depends neither on
the mesh nor on the order of adding.
"""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.errors import RequestError, StorageError
from beit_jax.weights.trees import leaves_by_path

ARRAYS, SEAL = 'arrays', 'sha256'  # entries of the JSON in a checkpoint

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# odd, so that each mix is a bijection of 32 bits: one changed element always changes the sum
_PLACE, _MIXES = np.uint32(0x9E3779B1), (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


def checksums(tree) -> dict[str, str]:
    """{path: 16 hexadecimal digits} of each array of a tree, the same in every process."""
    sums = {}
    for path, leaf in leaves_by_path(tree).items():
        mesh = getattr(getattr(leaf, 'sharding', None), 'mesh', None)
        everywhere = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh else None
        )
        sums[path] = _compiled(everywhere)(leaf)
    sums = jax.device_get(sums)
    return {path: f'{int(high):08x}{int(low):08x}' for path, (high, low) in sums.items()}


@functools.lru_cache
def _compiled(everywhere):
    """`_checksum`, its result on every device; compiled once for all arrays of a shape."""
    return jax.jit(_checksum, out_shardings=everywhere)


def _checksum(array):
    """uint32 [2]."""
    array = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    words = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    places = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        places = places * np.uint32(length)
        places = places + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = lambda factor: _mix(words ^ (places * _PLACE), factor)
    return jnp.stack([jnp.sum(mixed(factor), dtype=jnp.uint32) for factor in _MIXES])


def _mix(words, factor):
    words = words * factor
    return (words ^ (words >> np.uint32(15))) * factor


class DamagedError(RequestError):
    """A checkpoint that is not what was saved."""


@contextlib.contextmanager
def reading(path: Path):
    """Whatever a checkpoint makes the readers stumble over is a DamagedError, or a StorageError
    where one of its files cannot be read."""
    try:
        yield
    except DamagedError:
        _check_readable(path)
        raise
    # not the file's fault
    except (RequestError, StorageError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        _check_readable(path)
        reason = str(error).strip().partition('\n')[0].partition(' See full TensorStore details')[0]
        raise DamagedError(
            f'checkpoint {path} is damaged ({type(error).__name__}: {reason[:200]})'
        ) from error


def _check_readable(path: Path) -> None:
    """The readers' errors do not tell what is damaged from what cannot be read: reads every file.

    Raises:
      StorageError: see there.
    """

    def refuse(error):
        raise error

    try:
        for folder, _, names in os.walk(path, onerror=refuse):
            for name in names:
                with open(os.path.join(folder, name), 'rb') as file:
                    while file.read(1 << 24):
                        pass
    except NotADirectoryError:  # a file where a checkpoint should be is damage
        return
    except OSError as error:
        raise StorageError(
            f'checkpoint {path} cannot be read ({error.strerror}: {error.filename}). Make it '
            'readable: the same command goes on.'
        ) from error


def seal(description: dict, tree) -> dict:
    """A description with what will tell whether it and the arrays of `tree` are still the same."""
    content = json.loads(json.dumps(description | {ARRAYS: _table(tree)}))
    return content | {SEAL: _digest(content)}


def unseal(content: dict | None, path: Path) -> tuple[dict, dict | None]:
    """(the description, {path: [dtype, shape, checksum]} or None where a checkpoint has none).

    Raises:
      DamagedError: the description is not what was saved.
    """
    if not content:
        raise DamagedError(f'checkpoint {path} is damaged (its description is missing)')
    content = dict(content)
    sealed, arrays = content.pop(SEAL, None), content.get(ARRAYS)
    if (sealed is not None or arrays is not None) and sealed != _digest(content):
        raise DamagedError(f'checkpoint {path} is damaged (its description has changed)')
    content.pop(ARRAYS, None)
    return content, arrays


def verify(tree: dict, arrays: dict | None, path: Path) -> None:
    """Raises DamagedError where arrays are not those of which `arrays` tells.

    `tree` may have some of the entries only.
    """
    if arrays is None:
        return
    found = _table(tree)
    wanted = {name: row for name, row in arrays.items() if name.partition('/')[0] in tree}
    wrong = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
    if wrong:
        raise DamagedError(
            f'checkpoint {path} is damaged ({len(wrong)} of its arrays have changed, {min(wrong)} '
            'among them)'
        )


def _table(tree) -> dict[str, list]:
    """{path: [dtype, shape, checksum]}."""
    sums, leaves = checksums(tree), leaves_by_path(tree)
    return {path: [str(leaf.dtype), list(leaf.shape), sums[path]] for path, leaf in leaves.items()}


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
