"""What a device can compute in a second at most, by its maker's figures."""

from beit_jax.machines.gpus import GPUS
from beit_jax.machines.tpus import CHIPS, Chip

# what JAX calls a device: what it is
_TPUS = {
    'TPU v4': 'v4',
    'TPU v5 lite': 'v5e',
    'TPU v5e': 'v5e',
    'TPU v5': 'v5p',
    'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
}
_GPUS = {gpu.name: gpu for gpu in GPUS.values()} | dict.fromkeys(
    ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB', 'NVIDIA A100 80GB PCIe'), GPUS['a100']
)


def chip_of(kind: str) -> Chip | None:
    """The TPU that JAX calls so; None where it is not known."""
    return CHIPS.get(_TPUS.get(kind, ''))


def peak_flops(device) -> float:
    """Floating-point operations a second of a `jax.Device` in bfloat16; 0 where that is not known,
    as of a CPU."""
    kind = device.device_kind
    if kind in _GPUS:
        return _GPUS[kind].bfloat16
    if kind in _TPUS:
        chip = CHIPS[_TPUS[kind]]
        # a device is a chip, or in split mode one of its cores
        cores = getattr(device, 'num_cores', None) or chip.cores
        return chip.flops_per_cycle * chip.hertz * cores / chip.cores
    return 0
