"""Parameters from whatever holds a BEiT.

A checkpoint or work directory of ours, or a file or folder of PyTorch weights, here or on Hugging
Face's hub.
"""

from collections.abc import Callable

import jax

from beit_jax.errors import check
from beit_jax.models.encoder import EncoderConfig
from beit_jax.weights.checkpoint import is_checkpoint, load_params
from beit_jax.weights.contents import TOKENIZER
from beit_jax.weights.hub import local
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
        folder of PyTorch weights; or a repository of these on Hugging Face's hub (see `hub`).
      place: from the abstract parameters (nested dict of jax.ShapeDtypeStruct) to the shardings of
        each; None: the first device.

    Returns:
      (parameters as a nested dict of arrays, the description that checkpoints carry; `notes` in it
        says what was assumed or changed).

    Raises:
      RequestError: none of these, or damaged.
      StorageError: it cannot be read, or downloaded, now.
    """
    found = local(path)
    check(
        not (found / TOKENIZER[1]).is_file() or (found / 'config.json').is_file(),
        f'{path} is a tokenizer, not an encoder: give a checkpoint or a work directory. What a '
        'tokenizer makes of pictures: python -m beit_jax.tools.tokenize --tokenizer DIR.',
    )
    if is_checkpoint(found):
        params, description = load_params(str(found), place)
        return params, description | {'architecture': LATER | description['architecture']}
    params, description = convert(examine(path, found=found))
    where = jax.local_devices()[0]
    if place:
        where = place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    return jax.device_put(params, where), description
