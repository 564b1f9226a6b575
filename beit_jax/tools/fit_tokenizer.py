"""Makes a tokenizer that takes no training: k-means on normalised patches of some pictures, or a
random projection, which needs no pictures."""

import math
import sys

import numpy as np
from tqdm import tqdm

from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig, sides
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import check
from beit_jax.tools import arguments, outputs, pixels_option
from beit_jax.whole_files import whole_directory

BATCH = 100
MEASURED = 1000  # patches of which it is known how well they are drawn


def random_patches(data: DataConfig, patch_size: int, count: int, seed: int) -> np.ndarray:
    """`count` patches, pixels in [0, 1], float32 [count, channels * patch_size ** 2], of randomly
    cropped training pictures, at most 64 of each."""
    from beit_jax.images.color import to_float
    from beit_jax.models.patches import patchify

    source, random = open_source(data, 'train'), np.random.default_rng(seed)
    per_picture = min(64, math.prod(side // patch_size for side in data.shape))
    sampler, views = Sampler(len(source), BATCH, seed), (data.view('image', 0, 'lanczos3'),)
    batches = pipeline.train_batches(source, sampler, views, data, np.arange(BATCH))
    patches, missing = [], count
    with tqdm(total=count, unit='patch', disable=None, dynamic_ncols=True) as progress:
        while missing > 0:
            for patches_PD in np.asarray(patchify(next(batches)['image'], patch_size)):
                chosen = random.permutation(len(patches_PD))[: min(per_picture, missing)]
                patches.append(patches_PD[chosen])
                missing -= len(chosen)
                progress.update(len(chosen))
    return np.asarray(to_float(np.concatenate(patches)))


def run(options) -> None:
    import jax
    import jax.numpy as jnp

    from beit_jax.models.patches import unpatchify
    from beit_jax.models.tokenizers import kmeans, make_tokenizer, random_projection
    from beit_jax.tasks.tokenizer_quality import drawn_psnr
    from beit_jax.weights.tokenizer import save_tokenizer

    kind, image_size, patch_size = options.kind, options.image_size, options.patch_size
    settings = {'vocabulary': options.vocabulary, 'patch_size': patch_size}
    check(options.seed >= 0, f'--seed is {options.seed}: use 0 or more.')
    output = outputs.folder('--output', options.output, new=True)
    settings['channels'] = pixels_option.pixel_format(options).num_channels
    tokenizer = make_tokenizer(kind, settings, image_size)
    config = tokenizer.config
    key = jax.random.key(options.seed)
    if kind == 'kmeans':
        data = arguments.data_config(options, image_size=image_size)
        check(
            options.patches >= options.vocabulary,
            f'--patches {options.patches} are too few for --vocabulary {options.vocabulary}.',
        )
        print(f'cutting {options.patches:,} patches out of pictures', file=sys.stderr)
        patches_ND = random_patches(data, patch_size, options.patches, options.seed)
        print(f'fitting {options.vocabulary:,} tokens to them', file=sys.stderr)
        params = kmeans.fit(
            key,
            jnp.asarray(patches_ND),
            config,
            watched=lambda keys: tqdm(keys, unit='iteration', disable=None, dynamic_ncols=True),
        )
        pictures = unpatchify(patches_ND[:MEASURED, None], (1, 1), config.channels)  # of one token
        psnr = drawn_psnr(tokenizer, params, pictures)
    else:
        params, psnr = random_projection.draw(key, config), None
    with whole_directory(output) as folder:
        save_tokenizer(folder, kind, config, image_size, params, psnr)
    rows, columns = (side // patch_size for side in sides(image_size))
    print(
        f'{kind} tokenizer: {config.vocabulary} tokens, {image_size} pixels to {rows} x {columns} '
        f'-> {output}'
    )


def _arguments():
    parser = arguments.parser(
        'fit_tokenizer',
        __doc__,
        'python -m beit_jax.tools.fit_tokenizer --kind kmeans --vocabulary 128 --patch_size 6 '
        '--image_size 36 --data.name shapes --output tokenizers/kmeans',
    )
    parser.add_argument('--kind', required=True, choices=('kmeans', 'random_projection'))
    parser.add_argument('--output', required=True, metavar='DIR', help='the directory to write')
    parser.add_argument('--vocabulary', type=int, default=8192, help='number of tokens (8192)')
    parser.add_argument(
        '--patch_size', type=int, default=16, help='pixels per token along a side (16)'
    )
    parser.add_argument(
        '--image_size',
        type=pixels_option.size,
        default=224,
        help='side in pixels of the pictures it is for, or H,W (224)',
    )
    parser.add_argument('--patches', type=int, default=100_000, help='to learn from (100000)')
    parser.add_argument('--seed', type=int, default=0)
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
