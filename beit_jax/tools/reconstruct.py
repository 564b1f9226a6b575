"""A picture of what a pre-trained model has learned: original, masked, what the tokenizer alone
keeps (if there is one), what the model predicts."""

import json
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from beit_jax.data.pictures.load import load_images
from beit_jax.errors import check
from beit_jax.images.color import normalize, patch_statistics, to_float
from beit_jax.models.patches import patchify, unpatchify
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import arguments
from beit_jax.train.step import abstract_params
from beit_jax.weights.load import load_weights
from beit_jax.weights.tokenizer import load_tokenizer
from beit_jax.weights.trees import check_params

COLUMNS = ('original', 'masked', 'tokenizer', 'model')
CELL, GAP, TITLE = 144, 6, 22


def load_run(workdir: str, tokenizer: str = ''):
    """(task, parameters) of a pre-training work directory; `tokenizer`: where that has moved
    since."""
    path = Path(workdir) / 'config.json'
    check(
        path.is_file(),
        f'--workdir={workdir}: there is no config.json; give the work directory of a pre-training '
        'run.',
    )
    config = json.loads(path.read_text())
    check(
        config['task'] == 'pretrain',
        f'--workdir={workdir} is a {config["task"]} run: give that of a pre-training run.',
    )
    if tokenizer:
        config['tokenizer']['path'] = tokenizer
    task = make_task(task_config(config))
    params, description = load_weights(workdir)
    params, _, _ = task.adapt(params, description, (), workdir)
    check_params(abstract_params(task), params, workdir)
    return task, params


def predict_pictures(
    task, tokenizer_params, params, image_BSS3, token_image_BTT3=None, *, seed: int
):
    """(masked images, tokenizer's reconstructions, model's), float32 [B, side, side, 3] in [0, 1];
    the tokenizer's only where there is one.

    The model's picture is what it predicts of the patches that the loss is on, and the truth
    elsewhere: tokens, which are decoded, or pixels, to which the mean and the deviation of each
    true patch are given back.
    """
    config, rows_B1 = task.config, jnp.arange(len(image_BSS3))[:, None]
    mask_BP, slots_BK, weights_BK = task.draw_masks(
        jax.random.split(jax.random.key(seed), len(image_BSS3))
    )
    outputs_BKV = nnx.merge(task.graphdef, params)(
        normalize(image_BSS3, config.data.mean, config.data.std), mask_BP, slots_BK
    )
    # unused slots all name patch 0: send them out of bounds, where they are dropped
    slots_BK = jnp.where(weights_BK > 0, slots_BK, mask_BP.shape[1])
    patches_BPV = patchify(image_BSS3, config.model.patch_size)
    masked = unpatchify(jnp.where(mask_BP[..., None], 0.5, patches_BPV), config.grid)
    if not task.tokenizer:
        mean_BP1, deviation_BP1 = patch_statistics(patches_BPV)
        predicted_BPV = (
            ((patches_BPV - mean_BP1) / deviation_BP1)
            .at[rows_B1, slots_BK]
            .set(outputs_BKV, mode='drop')
        )
        return masked, jnp.clip(
            unpatchify(predicted_BPV * deviation_BP1 + mean_BP1, config.grid), 0, 1
        )
    tokens_BP = task.tokenizer.encode(tokenizer_params, token_image_BTT3)
    predicted_BP = tokens_BP.at[rows_B1, slots_BK].set(jnp.argmax(outputs_BKV, -1), mode='drop')
    return masked, *(
        task.tokenizer.decode(tokenizer_params, ids_BP) for ids_BP in (tokens_BP, predicted_BP)
    )


def grid_picture(columns: list[np.ndarray], titles: tuple[str, ...]) -> Image.Image:
    """One row an image, one column an array of pictures (float [B, S, S, 3] in [0, 1])."""
    rows = len(columns[0])
    canvas = Image.new(
        'RGB', (len(columns) * (CELL + GAP) + GAP, TITLE + rows * (CELL + GAP)), 'white'
    )
    draw = ImageDraw.Draw(canvas)
    for c, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        left = GAP + c * (CELL + GAP)
        draw.text((left, 4), title, fill='black')
        for r, picture in enumerate(np.rint(np.asarray(pictures) * 255).astype(np.uint8)):
            enlarge = (
                Image.Resampling.NEAREST if picture.shape[0] < CELL else Image.Resampling.BICUBIC
            )
            canvas.paste(
                Image.fromarray(picture).resize((CELL, CELL), enlarge),
                (left, TITLE + r * (CELL + GAP)),
            )
    return canvas


def run(options) -> None:
    # TensorFlow-free, and the pictures are not jittered: a person wants to see the image that was
    # given
    check(options.limit > 0, f'--limit is {options.limit}: use at least 1.')
    task, params = load_run(options.workdir, options.tokenizer)
    path = task.config.tokenizer.path
    tokenizer_params = load_tokenizer(path, decoder=True)[1] if task.tokenizer else {}
    check(
        'decoder' in tokenizer_params or not task.tokenizer,
        f'the tokenizer {path} has no decoder: it cannot draw pictures.',
    )
    sizes = [view.size for view in task.views + task.prepare_views]
    if options.images == 'shapes':
        from beit_jax.data.sources.shapes import ShapesSource

        source = ShapesSource(options.limit, sizes[0], task.config.data.level, 'evaluate')
        pictures = np.stack([source.read(i).image for i in range(options.limit)])
        views = [
            pictures,
            *(
                np.stack(
                    [
                        np.asarray(
                            Image.fromarray(p).resize((size, size), Image.Resampling.LANCZOS)
                        )
                        for p in pictures
                    ]
                )
                for size in sizes[1:]
            ),
        ]
    else:
        views = [load_images(options.images, size, options.limit)[0] for size in sizes]
    image, *token_image = map(to_float, views)
    pictures = jax.jit(lambda *inputs: predict_pictures(task, *inputs, seed=options.seed))(
        tokenizer_params, params, image, *token_image
    )
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    grid_picture(
        [image, *pictures], tuple(name for name in COLUMNS if name != 'tokenizer' or task.tokenizer)
    ).save(output)
    print(f'{len(image)} images -> {output}')


def _arguments():
    parser = arguments.parser(
        'reconstruct',
        __doc__,
        'python -m beit_jax.tools.reconstruct --workdir runs/quickstart/pretrain '
        '--images shapes --output reconstructions.png',
    )
    parser.add_argument('--workdir', required=True, help='work directory of a pre-training run')
    parser.add_argument(
        '--images',
        required=True,
        help='folder, image file, .npy array [B, H, W, 3], or `shapes` (the built-in pictures)',
    )
    parser.add_argument('--output', required=True, help='the PNG to write')
    parser.add_argument('--limit', type=int, default=8, help='at most so many images (8)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (0)')
    parser.add_argument(
        '--tokenizer',
        default='',
        help='directory of the tokenizer, where it has moved since the run',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
