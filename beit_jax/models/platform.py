"""What a model is traced for, which need not be what this process has: `tools.plan` compiles for chips that are elsewhere."""
import jax


def target_platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the mesh in use (`train.sharding.on_mesh`), else of JAX's default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
