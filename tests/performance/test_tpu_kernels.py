"""How long a kernel takes by its schedule."""

import pytest

from beit_jax.machines.tpus import CHIPS
from beit_jax.performance.tpu_kernels import issue_cycles

# as the compiler writes it: a line a bundle, among others
SCHEDULE = """
$region0: #{product}
   0x0   : > { %1 = vmatmul.bf16.gmra.mxu0 %v1  ;;  %2 = vmatmul.bf16.gmra.mxu1 %v2 }
   0x1   : > { %v3 = vadd.f32 %v4, %v5 }
   0x2   :  { %v6 = vpop.f32.mrf.mxu0  ;;  %7 = vmatpush.bf16.msra.mxu0 %v7 }
0x3   : > { %8 = vmatmul.bf16.vlgmr.msrb.gmra.mxu1 %v8 }
   0x4   : > { %9 = vmatmul.bf16.gmra.mxu1 %v9 }
   0x5   : > { %10 = vmatmul.bf16.gmra.mxu0 %v10 }
"""


# The products of unit 1 wait for the first and for one another, that of unit 0 for its bundle's
# turn alone; where units are as fast as the bundles, nothing waits.
@pytest.mark.parametrize(
    ('product_cycles', 'cycles'), [(1, 6), (2, 7), (16, 1 + 16 + 16 + 1), (5, 1 + 5 + 5 + 1)]
)
def test_a_product_waits_for_its_unit(product_cycles, cycles):
    assert issue_cycles(SCHEDULE, product_cycles) == cycles


@pytest.mark.parametrize(
    ('kind', 'units', 'side'), [('v5e', 4, 128), ('v5p', 4, 128), ('v6e', 2, 256)]
)
def test_the_rate_is_that_of_the_peak(kind, units, side):
    """16 rows times all columns of a unit, of each core."""
    chip = CHIPS[kind]
    assert chip.cores * units * 2 * 16 * side**2 == chip.product_cycles * chip.flops_per_cycle
