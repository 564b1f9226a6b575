"""What a pre-trained model makes of the patches that it does not see, as pictures."""

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.images.color import normalize, patch_statistics
from beit_jax.models.patches import patchify, unpatchify


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
