"""BEiT (arXiv 2106.08254) in JAX and Flax.

model = beit_jax.load('microsoft/beit-base-patch16-224')  # or a path
images = model.preprocess(['cat.jpg', 'dog.png'])  # uint8 [2, 224, 224, 3]
model.logits(images), model.features(images, layers=(-1,))
"""

import time

__version__ = '0.1.0'
LAUNCHED = time.perf_counter()


def load(path, dtype='float32'):
    """The model of anything that holds a BEiT, ready for pictures: see
    `beit_jax.weights.models.Model`. Warns of what was assumed.

    Args:
      path: a checkpoint, a work directory, a .pth, .bin or .safetensors file of the official code,
        timm or transformers, a folder with one, or a model on Hugging Face's hub (docs/weights.md).
      dtype: of the products, 'float32' or 'bfloat16', or the type: jnp.bfloat16.

    Raises:
      beit_jax.errors.RequestError: nothing of that, damaged, or refused; the message says what is
        wrong.
      beit_jax.errors.StorageError: it cannot be read or downloaded now.
    """
    import warnings

    # here and not above: the version is to be read without JAX
    from beit_jax.weights.models import load_model

    model = load_model(path, dtype)
    for note in model.notes:
        warnings.warn(f'{path}: {note}', stacklevel=2)
    return model
