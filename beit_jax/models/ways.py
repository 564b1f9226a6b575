"""How the parts of an encoder are computed on the devices that are traced for: 'plain', 'cudnn' or
'pallas'. `model`: an `EncoderConfig`; `grid`: rows and columns of patches; `dtype`: of products."""

import math

from beit_jax.models.attention import choose
from beit_jax.models.fused_attention import attention_hindrance
from beit_jax.models.fused_mlp import choose_mlp, mlp_hindrance
from beit_jax.models.fused_projections import choose_projections, projections_hindrance
from beit_jax.models.kernels import is_faster
from beit_jax.models.platform import target_platform

# settings of an encoder that say how it is computed, not what
PARTS = 'attention', 'projections', 'mlp'


def attention_way(model, grid: tuple[int, int], dtype) -> str:
    """See `choose`."""
    tokens = 1 + math.prod(grid)
    return choose(
        model.attention,
        dtype=dtype,
        tokens=tokens,
        width=model.width // model.heads,
        biased='bias' in model.positions or tokens % 2 > 0,  # what is filled up is hidden by one
    )


def kernel_settings(model) -> dict[str, str]:
    """`projections` and `mlp` as blocks take them. With remat auto is plain: kernels are run again
    whole, where XLA leaves out what no gradient takes (docs/benchmarks.md)."""
    settings = {'projections': model.projections, 'mlp': model.mlp}
    auto = 'plain' if model.remat else 'auto'
    return {part: auto if setting == 'auto' else setting for part, setting in settings.items()}


def ways(model, grid: tuple[int, int], dtype) -> dict[str, str]:
    """{part: its way} of attention, of the products beside it (`projections`), and of the MLP.

    Raises:
      RequestError: config.model.PART cannot be had there.
    """
    sizes = {'dtype': dtype, 'tokens': 1 + math.prod(grid), 'width': model.width}
    projections, mlp = kernel_settings(model).values()
    return {
        'attention': attention_way(model, grid, dtype),
        'projections': choose_projections(projections, model.attention, model.heads, **sizes),
        'mlp': choose_mlp(mlp, hidden=model.hidden, **sizes),
    }


def hindrances(model, grid: tuple[int, int], dtype) -> list[str]:
    """Why kernels that a TPU would be faster with cannot be taken, a line for each part."""
    if target_platform() != 'tpu':
        return []
    tokens, width, heads = 1 + math.prod(grid), model.width, model.heads
    found = {'attention': attention_hindrance(tokens, width // heads)}
    if is_faster():
        found['projections'] = projections_hindrance(model.attention, dtype, tokens, width, heads)
        found['mlp'] = mlp_hindrance(dtype, tokens, width, model.hidden)
    settings = {'attention': model.attention} | kernel_settings(model)
    asked = {part: why for part, why in found.items() if settings[part] == 'auto' and why}
    return [f'config.model.{part} is plain: {why}' for part, why in asked.items()]
