"""How good is a tokenizer? What its reconstructions keep, how much of its vocabulary it uses,
whether lower precision changes its tokens, and how fast it is; and a picture of originals over
reconstructions."""

import dataclasses
import json
from pathlib import Path
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from beit_jax.data.config import View
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import check
from beit_jax.images.color import to_float
from beit_jax.images.quality import WINDOW, psnr, ssim
from beit_jax.models.tokenizers import PRECISIONS, make_tokenizer
from beit_jax.tools import arguments
from beit_jax.weights.tokenizer import load_tokenizer

SHOWN, CELL = 8, 112  # pictures in the picture, and their side in pixels


def measure(tokenizer, params, batches) -> dict:
    """Figures of a tokenizer (see `load_tokenizer`) over batches of pictures, uint8 [B, S, S, 3];
    all but the last of one size.

    Returns:
      a dict: `psnr` (dB) and `ssim`, means over images, None without a decoder; `codebook_usage`,
        the share of tokens that occur; `token_perplexity`, the effective number of tokens;
        `position_entropy`, bits, [rows][columns]; `agreement` by precision, the share of positions
        with the token of float32; `images_per_second` by precision; and `pictures`, float [2, 8, S,
        S, 3]: originals, reconstructions.
    """
    params = jax.device_put(params)
    architecture = dataclasses.asdict(tokenizer.config)
    encode = {
        precision: jax.jit(
            make_tokenizer(tokenizer.kind, architecture, tokenizer.image_size, precision).encode
        )
        for precision in PRECISIONS
    }
    draw = jax.jit(
        lambda params, ids, images: (
            pictures := tokenizer.decode(params, ids),
            psnr(images, pictures),
            (
                ssim(images, pictures)
                if images.shape[1] >= WINDOW
                else jnp.full(len(images), jnp.nan)
            ),
        )
    )
    quality, same, seconds, kept = (
        [],
        dict.fromkeys(PRECISIONS, 0),
        {precision: [] for precision in PRECISIONS},
        [],
    )
    counts_PV, total, size = None, 0, 0
    for pixels in batches:
        images = jax.block_until_ready(to_float(jnp.asarray(pixels)))
        ids = {}
        for precision, run in encode.items():
            began = time.perf_counter()
            ids[precision] = np.asarray(run(params, images))
            if len(pixels) == size:  # else it compiles
                seconds[precision].append((time.perf_counter() - began) / size)
        size, exact_BP = len(pixels), ids['float32']
        counts_PV = (
            np.zeros((exact_BP.shape[1], tokenizer.vocabulary)) if counts_PV is None else counts_PV
        )
        np.add.at(counts_PV, (np.arange(exact_BP.shape[1]), exact_BP), 1)
        total += exact_BP.size
        for precision in PRECISIONS:
            same[precision] += int((ids[precision] == exact_BP).sum())
        if 'decoder' in params:
            pictures, *figures = draw(params, exact_BP, images)
            quality.append(np.stack(figures))
            kept = kept or [np.asarray(images[:SHOWN]), np.asarray(pictures[:SHOWN])]
    mean = np.concatenate(quality, axis=1).mean(1) if quality else [None, None]
    side = round(len(counts_PV) ** 0.5)
    return {
        'psnr': mean[0] if mean[0] is None else float(mean[0]),
        'ssim': None if mean[1] is None or np.isnan(mean[1]) else float(mean[1]),
        'codebook_usage': float((counts_PV.sum(0) > 0).mean()),
        'token_perplexity': float(2 ** _entropy(counts_PV.sum(0))),
        'position_entropy': [
            [float(_entropy(counts_V)) for counts_V in row]
            for row in counts_PV.reshape(side, side, -1)
        ],
        'agreement': {precision: count / total for precision, count in same.items()},
        'images_per_second': {
            precision: 1 / float(np.median(values)) if values else None
            for precision, values in seconds.items()
        },
        'images': total // len(counts_PV),
        'vocabulary': tokenizer.vocabulary,
        'device': jax.devices()[0].device_kind,
        'pictures': kept,
    }


def _entropy(counts_V) -> float:
    """Bits."""
    shares = counts_V[counts_V > 0] / counts_V.sum()
    return -np.sum(shares * np.log2(shares))


def read_batches(options, size: int):
    """Batches uint8 [B, size, size, 3] of at most `options.limit` pictures, spread evenly over the
    held-out ones, or over all."""
    from beit_jax.data import pipeline

    data = arguments.data_config(options, image_size=size)
    source = open_source(data, 'evaluate') or open_source(data, 'train')
    source = Subset(source, spread(source, options.limit))
    pipeline.check_source(source, data)
    for batch in pipeline.evaluate_batches(
        source,
        options.batch,
        (View('image', size, 'lanczos3'),),
        data,
        np.arange(options.batch),
        data.evaluate_crop,
    ):
        yield batch['image'][batch['valid'] > 0]


def picture(originals, reconstructions) -> Image.Image:
    """Originals (float [B, S, S, 3] in [0, 1]) over reconstructions."""
    rows = [
        np.concatenate(
            [
                np.asarray(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC))
                for image in np.rint(np.asarray(row) * 255).astype(np.uint8)
            ],
            axis=1,
        )
        for row in (originals, reconstructions)
    ]
    return Image.fromarray(np.concatenate(rows))


def run(options) -> None:
    check(options.limit > 0 and options.batch > 0, 'use at least 1 for --limit and --batch.')
    tokenizer, params = load_tokenizer(options.tokenizer, decoder=True)
    check(
        not options.output or 'decoder' in params,
        f'the tokenizer {options.tokenizer} has no decoder: it cannot draw pictures.',
    )
    figures = measure(
        tokenizer, params, read_batches(options, arguments.picture_size(options, tokenizer))
    )
    pictures = figures.pop('pictures')
    entropies = np.array(figures['position_entropy'])
    text = lambda value, form: 'none' if value is None else format(value, form)
    print(
        f'{figures["images"]:,} images, {entropies.shape[0]} x {entropies.shape[1]} tokens each, on '
        f'{figures["device"]}\nreconstruction    PSNR {text(figures["psnr"], ".2f")} dB   SSIM '
        f'{text(figures["ssim"], ".3f")}\ncodebook          {figures["codebook_usage"]:.1%} of '
        f'{tokenizer.vocabulary} occur; perplexity {figures["token_perplexity"]:.1f}\nentropy           '
        f'{entropies.mean():.2f} bits a position ({entropies.min():.2f} to {entropies.max():.2f})'
    )
    for precision in PRECISIONS:
        print(
            f'{precision:18}{figures["agreement"][precision]:.3%} of tokens as in float32; '
            f'{text(figures["images_per_second"][precision], ",.0f")} images/s'
        )
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        picture(*pictures).save(options.output)
    if options.json:
        Path(options.json).write_text(json.dumps(figures) + '\n')


def _arguments():
    parser = arguments.parser(
        'evaluate_tokenizer',
        __doc__,
        'python -m beit_jax.tools.evaluate_tokenizer --tokenizer tokenizers/dalle '
        '--data.path /imagenet/val --output tokenizer.png',
    )
    parser.add_argument('--tokenizer', required=True, metavar='DIR')
    parser.add_argument(
        '--limit', type=int, default=1000, help='at most so many images, spread evenly (1000)'
    )
    parser.add_argument('--batch', type=int, default=32, help='images a call (32)')
    parser.add_argument(
        '--image_size',
        type=int,
        default=0,
        help='side in pixels of what it is shown (what it was made for)',
    )
    parser.add_argument(
        '--output', default='', metavar='PNG', help='also draw originals over reconstructions'
    )
    parser.add_argument(
        '--json', default='', metavar='FILE', help='also write the figures to this file'
    )
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
