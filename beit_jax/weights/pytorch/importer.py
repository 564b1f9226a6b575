"""BEiT models from PyTorch's names and layouts to ours.

The architecture is read from the tensors, and from what is said beside them what tensors cannot
show. Everything that is wrong with a file is found before anything is refused, so that one message
lists all of it.
"""

from collections import Counter
import dataclasses
from pathlib import Path

from flax import traverse_util
import ml_dtypes
import numpy as np

import beit_jax
from beit_jax.errors import RequestError, check
from beit_jax.models.architecture import abstract
from beit_jax.models.layers import relative_position_index
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.architecture import describe, read_sizes
from beit_jax.weights.pytorch.dialects import find_head, identify, without_empty_block
from beit_jax.weights.pytorch.entries import shown
from beit_jax.weights.pytorch.facts import Facts, huggingface_settings, read_facts
from beit_jax.weights.pytorch.files import Source, read_source
from beit_jax.weights.pytorch.pictures import said_shape


@dataclasses.dataclass(frozen=True)
class Examination:
    """What a file or folder of weights is, and what is wrong with it."""

    source: Source
    dialect: str  # of names.DIALECTS
    architecture: dict  # as checkpoints carry it; {} where it cannot be told
    classes: tuple[str, ...]  # their names; () where the file has none
    # by our paths, laid out as in the file (query, key and value apart)
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]  # what was assumed or will be changed
    problems: tuple[str, ...]  # why it cannot be imported


def examine(
    path: str | Path,
    mean: tuple | None = None,
    std: tuple | None = None,
    found: Path | None = None,
) -> Examination:
    """Reads a file or folder of weights and compares it with the model that it says it is.

    Args:
      path, found: see `read_source`.
      mean, std: of its pixels in [0, 1], instead of what is said there or assumed.

    Raises:
      RequestError: a file that cannot be read, or one that is of no BEiT.
    """
    source = read_source(path, found)
    dialect, tensors = identify(source)
    if dialect == 'huggingface':
        source, tensors = without_empty_block(source, tensors)
    notes, problems, architecture, classes, head = [], [], {}, (), find_head(dialect, tensors)
    beside = [name for name in tensors if name.startswith(names.CLS_PRETRAINING)]
    if beside and head != 'tokens':
        tensors = {name: array for name, array in tensors.items() if name not in set(beside)}
        notes.append(
            f'the {len(beside)} tensors {names.CLS_PRETRAINING}* of BEiT v2, which only its '
            'pre-training of CLS uses, are left out'
        )
    mask_token = names.to_name('encoder/mask_token', dialect, head)
    if head != 'tokens' and tensors.pop(mask_token, None) is not None:
        notes.append('the mask token is left out: a classifier hides nothing')
    counts = _pop_counters(tensors) if head == 'pixels' else []
    split = names.split_qkv(tensors)
    paths = {name: names.to_path(name, dialect, head) for name in split}
    by_path = {path: split[name] for name, path in paths.items() if path}
    try:
        sizes = read_sizes(by_path, said_shape(source))
        facts = read_facts(source, dialect, sizes['image_size'], head == 'pixels')
        architecture, assumed = describe(source, sizes, facts, head, mean, std)
        if counts:
            architecture['batches_tracked'] = max(counts)
        if architecture.get('num_classes'):
            classes = facts.classes
        problems += _differences(dialect, head, architecture, facts, tensors)
        notes += [*facts.notes, *assumed]
    except RequestError as error:
        problems.append(str(error))
        for name, ours in paths.items():
            if not ours and not name.endswith(names.INDEX):
                problems.append(_unexpected(name, split[name]))
    notes += _conversions(tensors)
    notes += [f'{name}, other weights in the file, is not used' for name in source.unused]
    return Examination(
        source, dialect, architecture, classes, by_path, tuple(notes), tuple(problems)
    )


def convert(found: Examination) -> tuple[dict, dict]:
    """(parameters, description) of a file.

    The parameters are a nested dict of float32 arrays, the description is that which a checkpoint
    carries, with `notes` and `source` besides.

    Raises:
      RequestError: lists every problem of the file.
    """
    check_problems(found)
    flat = {}
    for path, array in found.tensors.items():
        flat[path] = np.ascontiguousarray(names.from_torch(path, array), np.float32)
    description = {
        'task': 'import',
        'architecture': found.architecture,
        'classes': list(found.classes),
        'source': {'files': found.source.checksums(), 'dialect': found.dialect},
        'notes': list(found.notes),
        'versions': {'beit_jax': beit_jax.__version__},
    }
    return traverse_util.unflatten_dict(flat, sep='/'), description


def check_problems(found: Examination) -> None:
    """Raises RequestError with all that is wrong with a file, a line each."""
    count = len(found.problems)
    check(
        not count,
        f'{found.source.path} cannot be imported as a BEiT with names of {found.dialect}, {count} '
        f'{"thing is" if count == 1 else "things are"} wrong:\n  ' + '\n  '.join(found.problems),
    )


def _pop_counters(tensors: dict) -> list[int]:
    """How many batches each batch norm has seen; takes these numbers out of the tensors."""
    counters = []
    for name, array in tensors.items():
        if name.endswith(names.COUNTER) and array.shape == () and array.dtype == np.int64:
            counters.append(name)
    return [int(tensors.pop(name)) for name in counters]


def _conversions(tensors: dict) -> list[str]:
    kinds = Counter(str(array.dtype) for array in tensors.values() if _has_fractions(array))
    del kinds['float32']
    return [f'{count} tensors of {kind} are converted to float32' for kind, count in kinds.items()]


def _differences(
    dialect: str, head: str, architecture: dict, facts: Facts, tensors: dict
) -> list[str]:
    """What is not as the architecture has it, in the dialect's own names.

    Tensors, shapes, numbers, buffers, and what is said beside.
    """
    shapes, grid = _shapes(architecture, dialect, head), tuple(architecture['grid'])
    problems = []
    for name in tensors.keys() | shapes.keys():
        problems.append(_difference(name, tensors.get(name), shapes.get(name), grid))
    if facts.claims:
        for name, value in huggingface_settings(architecture).items():
            said = facts.claims[name]
            if said not in (value, [value] * 2):
                problems.append(f'config.json says {name} {shown(said)}, the tensors {value!r}')
    num_classes = architecture.get('num_classes', 0)
    if num_classes and len(facts.classes) not in (0, num_classes):
        problems.append(f'{len(facts.classes)} classes are named, the head has {num_classes}')
    return sorted(problem for problem in problems if problem)


def _difference(
    name: str, array: np.ndarray | None, shape: tuple | None, grid: tuple[int, int]
) -> str:
    """What is wrong with one tensor, '' where nothing is; `shape` is the expected one."""
    if array is None:
        return f'missing: {name} {list(shape)}'
    if name.endswith(names.INDEX):
        wrong = f'{name} is not the index of a grid of {grid[0]} x {grid[1]} patches'
        return '' if _is_index(array, grid) else wrong
    if shape is None:
        return _unexpected(name, array)
    if array.shape != shape:
        turned = ', its transpose' if array.shape == shape[::-1] else ''
        return f'{name} is {list(array.shape)}, expected {list(shape)}{turned}'
    if not _has_fractions(array):
        return f'{name} holds {array.dtype}, not real numbers'
    bad = np.count_nonzero(~np.isfinite(array))
    return f'{name} has {bad} numbers that are NaN or infinite' if bad else ''


def _is_index(array: np.ndarray, grid: tuple[int, int]) -> bool:
    tokens = 1 + grid[0] * grid[1]
    # its shape first: the index of a forged grid might not fit in memory
    return array.shape == (tokens, tokens) and np.array_equal(array, relative_position_index(grid))


def _unexpected(name: str, array: np.ndarray) -> str:
    return f'unexpected: {name[:120]!a} {list(array.shape)}'


def _has_fractions(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16


def _shapes(architecture: dict, dialect: str, head: str) -> dict[str, tuple[int, ...]]:
    """The state dict that the architecture has in a dialect: shapes by name."""
    _, wanted = abstract(architecture)
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(wanted, sep='/').items():
        zeros = np.broadcast_to(np.int8(0), leaf.shape)  # takes no memory
        shape = names.to_torch(path, zeros, architecture['patch_size']).shape
        name, is_part = names.whole_qkv(names.to_name(path, dialect, head))
        shapes[name] = (3 * shape[0], *shape[1:]) if is_part else shape
    return shapes
