"""The device mesh, and a list of rules that say how each array of the state lies on it.

Axes: `slice` and `data` split the batch, over slices (which the data-centre network joins) and
within one; `fsdp` splits the batch and the parameters; `tensor` splits heads and hidden widths. A
batch's rows lie over slice x data x fsdp. The first rule whose pattern is found in an array's path
decides, every array must have one, and the optimizer's moments match the rule of their parameter
because their path ends with its path.
"""

import functools
import math
import re

import jax
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from beit_jax.errors import RequestError, check
from beit_jax.models.platform import ROWS
from beit_jax.settings.run import MeshConfig
from beit_jax.weights.trees import path_string

AXES = ('slice', 'data', 'fsdp', 'tensor')
REPLICAS = ('slice', 'data')  # along which the parameters are the same
RULES = (
    # transformer: split heads and hidden units over `tensor`, the other side over `fsdp`
    (r'(query|key|value|fc1|projection)/kernel$', P('fsdp', 'tensor')),
    (r'(query|value|fc1|projection)/bias$', P('tensor')),
    (r'(attention/out|fc2)/kernel$', P('tensor', 'fsdp')),
    (r'head/classes/kernel$', P('fsdp')),  # 21841 classes do not divide
    (r'patch_embedding/kernel$', P(None, 'fsdp')),
    (r'position_bias/table$', P(None, 'tensor')),
    (r'(cls_token|mask_token|position_embedding|scale|scale1|scale2)$', P()),
    (r'(patch_embedding|attention/out|fc2|norm\d?|classes)/bias$', P()),
    # linear probes: small, and each of their own
    (r'(cls|mean|both)/(kernel|bias)$', P()),
    # UPerNet: convolutions [rows, columns, inputs, outputs]; what batch norm measures
    (r'(conv|deconv\d?|classifier)/kernel$', P(None, None, 'fsdp')),
    (r'(conv|deconv\d?|classifier)/bias$', P()),
    (r'norm/running_(mean|var)$', P()),
    (r'codebook$', P()),
    # discrete VAE: convolutions [rows, columns, inputs, outputs]
    (r'encoder/input/kernel$', P(None, None, None, 'fsdp')),
    (r'(input|output|shortcut|convs/\d)/kernel$', P(None, None, 'fsdp')),
    (r'(input|output|shortcut|convs/\d)/bias$', P()),
)


def make_mesh(config: MeshConfig, devices=None) -> jax.sharding.Mesh:
    """A mesh over `devices`, by default all of all processes.

    Raises:
      RequestError: the axes do not multiply to the number of devices, or `slice` is not the number
        of slices.
    """
    devices = devices or jax.devices()
    sizes, count = [getattr(config, axis) for axis in AXES], len(devices)
    check(
        sizes.count(-1) <= 1 and all(size == -1 or size > 0 for size in sizes),
        f'config.mesh is {sizes}: use positive numbers, and -1 (what is left) at most once.',
    )
    known = math.prod(size for size in sizes if size != -1)
    wanted = sizes
    sizes = [count // known if size == -1 else size for size in sizes]
    check(
        math.prod(sizes) == count,
        f'config.mesh {" x ".join(AXES)} = {" x ".join(map(str, wanted))} does not make the '
        f'{count} devices there are: change config.mesh (one axis may be -1).',
    )
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    check(
        slices in (1, sizes[0]),
        f'config.mesh.slice is {sizes[0]}, but these devices are {slices} slices: set it to '
        f'{slices}.',
    )
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    if slices > 1:
        return jax.sharding.Mesh(
            mesh_utils.create_hybrid_device_mesh([1, *sizes[1:]], [slices, 1, 1, 1], devices),
            AXES,
            axis_types=types,
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def on_mesh(mesh, function):
    """`function`, which when it is traced knows the mesh that it will run on."""

    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def batch_sharding(mesh) -> NamedSharding:
    """Rows over slice x data x fsdp."""
    return NamedSharding(mesh, P(ROWS))


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


@functools.lru_cache
def gather(mesh):
    """jitted: any tree of arrays -> the same, whole on every device."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def state_shardings(mesh, abstract_state, rules=RULES):
    """The sharding of each array of a tree of abstract shapes. Scalars are replicated.

    Raises:
      RequestError: an array that no rule matches, or an axis of the mesh that does not divide a
        dimension; names the array.
    """

    def resolve(path, leaf):
        name = path_string(path)
        if leaf.ndim == 0:
            return replicated(mesh)
        spec = next((spec for pattern, spec in rules if re.search(r'(^|/)' + pattern, name)), None)
        if spec is None:
            raise RequestError(
                f'no sharding rule matches {name} {list(leaf.shape)}: add one to '
                'beit_jax/train/sharding.py.'
            )
        for size, axis in zip(leaf.shape, spec):
            if axis and size % mesh.shape[axis]:
                raise RequestError(
                    f'config.mesh.{axis}={mesh.shape[axis]} does not divide {size} of {name} '
                    f'{list(leaf.shape)}: choose a divisor.'
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(resolve, abstract_state)


def check_batch(mesh, batch_size: int, accumulate_steps: int) -> None:
    """Raises RequestError where the parts of a batch cannot be laid over the mesh."""
    part, shards = batch_size // accumulate_steps, math.prod(mesh.shape[axis] for axis in ROWS)
    check(
        part % shards == 0,
        f'a batch of {batch_size} in {accumulate_steps} parts leaves {part} images for '
        f'{" x ".join(ROWS)} = {shards} devices: make config.batch_size a multiple of '
        f'{accumulate_steps * shards}, or change config.mesh.',
    )


def local_rows(mesh, batch_size: int) -> np.ndarray:
    """Which rows of the global batch lie on this process's devices, in increasing order, int64."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def put_batch(mesh, batch: dict, batch_size: int) -> dict:
    """Places this process's rows (NumPy) as its part of the global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, value, (batch_size, *value.shape[1:])
        )
        for name, value in batch.items()
    }
