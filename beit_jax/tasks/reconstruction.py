"""What a pre-trained model makes of the patches that it does not see, as pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import RequestError
from beit_jax.images.color import normalize, patch_statistics, to_float
from beit_jax.models.patches import patchify, unpatchify
from beit_jax.models.tokenizers import dvae
from beit_jax.weights.tokenizer import check_draws, load_tokenizer


def predict_pictures(
    task, tokenizer_params, params, image_BSS3, token_image_BTT3=None, *, seed: int
):
    """(masked images, tokenizer's reconstructions, model's), float32 [B, height, width, C] in
    [0, 1]; the tokenizer's only where there is one.

    The model's picture is what it predicts of the patches that the loss is on, and the truth
    elsewhere: tokens, which are decoded, or pixels, to which the mean and the deviation of each
    true patch are given back.
    """
    config, rows_B1 = task.config, jnp.arange(len(image_BSS3))[:, None]
    keys_B = jax.random.split(jax.random.key(seed), len(image_BSS3))
    mask_BP, slots_BK, weights_BK = task.draw_masks(keys_B)
    pixels_BSS3 = normalize(image_BSS3, config.data.mean, config.data.std)
    outputs_BKV = nnx.merge(task.graphdef, params)(pixels_BSS3, mask_BP, slots_BK)
    # unused slots all name patch 0: send them out of bounds, where they are dropped
    slots_BK = jnp.where(weights_BK > 0, slots_BK, mask_BP.shape[1])
    patches_BPV = patchify(image_BSS3, config.model.patch_size)
    picture_of = lambda patches_BPV: unpatchify(patches_BPV, config.grid, config.model.channels)
    masked_BSS3 = picture_of(jnp.where(mask_BP[..., None], 0.5, patches_BPV))
    if not task.tokenizer:
        mean_BP1, deviation_BP1 = patch_statistics(patches_BPV)
        predicted_BPV = (patches_BPV - mean_BP1) / deviation_BP1
        predicted_BPV = predicted_BPV.at[rows_B1, slots_BK].set(outputs_BKV, mode='drop')
        predicted_BPV = predicted_BPV * deviation_BP1 + mean_BP1
        return masked_BSS3, jnp.clip(picture_of(predicted_BPV), 0, 1)
    tokens_BP = task.tokenizer.encode(tokenizer_params, token_image_BTT3)
    predicted_BP = tokens_BP.at[rows_B1, slots_BK].set(jnp.argmax(outputs_BKV, -1), mode='drop')
    kept_BTT3, predicted_BTT3 = (
        task.tokenizer.decode(tokenizer_params, ids_BP, config.grid)
        for ids_BP in (tokens_BP, predicted_BP)
    )
    return masked_BSS3, kept_BTT3, predicted_BTT3


class Drawing(NamedTuple):
    """What a task draws of held-out pictures as it learns. `draw`: (arrays, params, batch) -> the
    columns of a picture, one a title, float32 [B, height, width, C] in [0, 1]."""

    titles: tuple[str, ...]
    arrays: Any  # that `draw` needs and nobody learns
    draw: Callable


def drawing_of(task) -> Drawing | None:
    """None where `config.pictures` asks for none, or the task draws none this way.

    Raises:
      RequestError: a tokenizer that cannot draw.
    """
    kind, config = task.config.task, task.config
    if kind not in ('pretrain', 'tokenizer') or not config.pictures:
        return None
    if kind == 'tokenizer':
        tokenizer = dvae.Tokenizer(config.model, config.data.image_size)
        grid = tuple(side // config.model.factor for side in config.data.shape)

        def draw_again(arrays, params, batch):
            image_BSS3 = to_float(batch[task.views[0].name])
            ids_BP = tokenizer.encode(params, image_BSS3)
            return image_BSS3, tokenizer.decode(params, ids_BP, grid)

        return Drawing(('original', 'tokenizer'), (), draw_again)

    def draw_hidden(arrays, params, batch):
        images = [to_float(batch[view.name]) for view in task.views + task.prepare_views]
        return images[0], *predict_pictures(task, arrays, params, *images, seed=config.seed)

    if not task.tokenizer:
        return Drawing(('original', 'masked', 'model'), (), draw_hidden)
    path = config.tokenizer.path
    _, arrays = load_tokenizer(path, decoder=True)
    try:
        check_draws(task.tokenizer, arrays, path)
    except RequestError as error:
        raise RequestError(f'{error} Set config.pictures=0.') from error
    return Drawing(('original', 'masked', 'tokenizer', 'model'), arrays, draw_hidden)
