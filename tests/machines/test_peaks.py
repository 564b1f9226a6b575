"""Peaks of devices, beside what Google and NVIDIA publish."""

import types

import pytest

from beit_jax.machines.peaks import peak_flops


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU v6 lite', 918e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 0),  # a part of one
        ('cpu', 0),
    ],
)
def test_peak(kind, peak):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == pytest.approx(peak, rel=2e-3)


def test_half_a_chip():
    """In split mode a device is one of the two cores."""
    core = types.SimpleNamespace(device_kind='TPU v4', num_cores=1)
    assert peak_flops(core) == pytest.approx(275e12 / 2, rel=2e-3)
