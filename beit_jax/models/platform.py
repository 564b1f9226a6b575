"""What a model is traced for, which need not be what this process has.

`performance.plan` compiles for chips that are elsewhere.
"""

from collections.abc import Callable
import functools

import jax
from jax.sharding import PartitionSpec as P

# the axes of the mesh over which images and heads lie (`train.sharding`)
ROWS, HEADS = ('slice', 'data', 'fsdp'), 'tensor'
NONE = 'none'  # the platform of `on_no_device`
_AMPERE = 8  # major compute capability


def on_no_device(function: Callable) -> Callable:
    """`function`, traced without the kernels of any device, in whose products its arithmetic can be
    counted."""
    return traced_for(NONE, function)


def traced_for(platform: str, function: Callable) -> Callable:
    """`function`, traced for one device of a platform, whatever this process has."""
    device, auto = jax.sharding.AbstractDevice(platform, None, platform), jax.sharding.AxisType.Auto
    mesh = jax.sharding.AbstractMesh((1,), (platform,), (auto,), abstract_device=device)

    @functools.wraps(function)
    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh):
            return function(*arguments)

    return traced


def target_platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the mesh in use (`train.sharding.on_mesh`), else JAX's default;
    NONE where arithmetic is counted."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def target_kind() -> str:
    """What JAX calls a device of the mesh in use, else its default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def cudnn_hindrance() -> str:
    """Why cuDNN's attention cannot be taken on the devices that are traced for, and what to do; ''
    where it can.

    Of GPUs that are elsewhere nothing but their platform is known: they are taken for NVIDIA's.
    """
    platform = target_platform()
    if platform != 'gpu':
        return f"cuDNN is for NVIDIA's GPUs, this is a {platform}: run it on one"
    if jax.default_backend() == 'gpu':
        device = jax.local_devices()[0]
        major = str(device.compute_capability).partition('.')[0]  # '9.0'; of AMD's: 'gfx942'
        if not (major.isdecimal() and int(major) >= _AMPERE):
            return (
                f"cuDNN's attention takes an NVIDIA GPU of compute capability {_AMPERE}.0 or "
                f'more, this is a {device.device_kind} of {device.compute_capability}: run it on '
                'one'
            )
    return ''


def row_axes() -> tuple[str, ...]:
    """The axes of the mesh in use over which the compiler splits a batch.

    Those that a `shard_map` around splits already are not among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in ROWS if axis in mesh.axis_names and axis not in mesh.manual_axes)


def keep_rows(x: jax.Array) -> jax.Array:
    """`x`, whose rows stay where those of the batch are.

    Inside a scan the compiler may else rather move tokens than parameters.
    """
    axes = row_axes()
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(axes, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def on_each_device(kernel: Callable, in_specs: tuple, out_specs) -> Callable:
    """A kernel on the devices of the mesh in use, each with its part of the arrays; where there is
    no mesh, as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    # kernels do not say over which axes their results differ
    return jax.shard_map(kernel, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def by_rows(function: Callable, rows: jax.Array) -> jax.Array:
    """function(rows), a row for each.

    Devices compute their own: a loop ends when these are done, and the compiler moves none of them.
    """
    axes = row_axes()
    if not axes:
        return function(rows)
    return jax.shard_map(
        function, in_specs=P(axes), out_specs=P(axes), axis_names=set(axes), check_vma=False
    )(rows)
