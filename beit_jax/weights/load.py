"""Parameters from whatever holds a BEiT.

A checkpoint or work directory of ours, or a file or folder of PyTorch weights.
"""

from collections.abc import Callable

import jax

from beit_jax.models.encoder import EncoderConfig
from beit_jax.weights.checkpoint import is_checkpoint, load_params
from beit_jax.weights.pytorch.files import check_exists
from beit_jax.weights.pytorch.importer import convert, examine

# entries that older descriptions, or those of pre-training, do not have
LATER = {
    'channels': EncoderConfig.channels,
    'norm_eps': EncoderConfig.norm_eps,
    'init_std': EncoderConfig.init_std,
    'qkv_bias': EncoderConfig.qkv_bias,
    'crop': 1.0,
}


def load_weights(path: str, place: Callable | None = None) -> tuple[dict, dict]:
    """The parameters of a model: their moving average where a run kept one.

    Args:
      path: a checkpoint, a work directory (its newest one), a file (.pth, .bin, .safetensors) or
        folder of PyTorch weights.
      place: from the abstract parameters (nested dict of jax.ShapeDtypeStruct) to the shardings of
        each; None: the first device.

    Returns:
      (parameters as a nested dict of arrays, the description that checkpoints carry; `notes` in it
        says what was assumed or changed).

    Raises:
      RequestError: none of these, or damaged.
    """
    check_exists(path)
    if is_checkpoint(path):
        params, description = load_params(path, place)
        return params, description | {'architecture': LATER | description['architecture']}
    params, description = convert(examine(path))
    where = jax.local_devices()[0]
    if place:
        where = place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    return jax.device_put(params, where), description
