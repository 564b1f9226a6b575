"""How good is a tokenizer? What its reconstructions keep, how much of its vocabulary it uses,
whether lower precision changes its tokens, and how fast it is; and a picture of originals over
reconstructions."""

from collections.abc import Iterator

import numpy as np

from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.grid import rows_picture, visible
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import check
from beit_jax.inference.reading import readable_batches
from beit_jax.tools import arguments, images_option, outputs, pixels_option

CELL = 112  # side of a picture in the picture, in pixels


def read_batches(
    options, data: DataConfig, resampling: str, left_out: images_option.LeftOut
) -> Iterator[np.ndarray]:
    """Batches [B, height, width, channels] of at most `options.limit` pictures, spread evenly over
    the held-out ones, or over all; without those that cannot be read."""
    source = open_source(data, 'evaluate') or open_source(data, 'train')
    source = Subset(source, spread(source, options.limit))
    pipeline.check_source(source, data)
    views = (data.view('image', 0, resampling),)
    for made in readable_batches(source, views, data, options.batch, left_out):
        yield made['image']


def report(figures: dict) -> str:
    """What `measure` found, for a person."""
    entropies = np.array(figures['position_entropy'])
    rows, columns = entropies.shape
    lines = [
        f'{figures["images"]:,} images, {rows} x {columns} tokens each, on {figures["device"]}',
        f'reconstruction    PSNR {_text(figures["psnr"], ".2f")} dB   '
        f'SSIM {_text(figures["ssim"], ".3f")}',
        f'codebook          {figures["codebook_usage"]:.1%} of {figures["vocabulary"]} occur; '
        f'perplexity {figures["token_perplexity"]:.1f}',
        f'entropy           {entropies.mean():.2f} bits a position ({entropies.min():.2f} to '
        f'{entropies.max():.2f})',
    ]
    for precision, here in figures['precision_here'].items():
        if here != precision:
            lines.append(f'{precision:18}is {here} on this device')
            continue
        rate = figures['images_per_second'][precision]
        speed = f'{rate:,.0f} images/s' if rate else 'no speed (it takes two whole batches)'
        agreement = f'{figures["agreement"][precision]:.3%} of tokens as in float32'
        lines.append(f'{precision:18}{agreement}; {speed}')
    return '\n'.join(lines)


def _text(value: float | None, form: str) -> str:
    return 'none' if value is None else format(value, form)


def run(options) -> None:
    from beit_jax.tasks.tokenizer_quality import measure
    from beit_jax.weights.tokenizer import check_draws, load_tokenizer

    check(options.limit > 0 and options.batch > 0, 'use at least 1 for --limit and --batch.')
    inputs = [options.tokenizer, getattr(options, 'data.path')]
    output = outputs.file('--output', options.output, inputs, outputs.PICTURE)
    json_file = outputs.file('--json', options.json, inputs)
    tokenizer, params = load_tokenizer(options.tokenizer, decoder=True)
    if output:
        check_draws(tokenizer, params, options.tokenizer)
    size = pixels_option.picture_size(options, tokenizer)
    data = pixels_option.data_for(options, tokenizer, size)
    left_out = images_option.LeftOut(options)
    batches = read_batches(options, data, tokenizer.resampling, left_out)
    figures = measure(tokenizer, params, batches)
    pictures = figures.pop('pictures')
    print(f'{report(figures)}{left_out}')
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        rows_picture([visible(row, options.bands) for row in pictures], CELL).save(output)
    outputs.write(json_file, figures)


def _arguments():
    parser = arguments.parser(
        'evaluate_tokenizer',
        __doc__,
        'python -m beit_jax.tools.evaluate_tokenizer --tokenizer tokenizers/dalle '
        '--data.path /imagenet/val --output tokenizer.png',
    )
    parser.add_argument('--tokenizer', required=True, type=arguments.path, metavar='DIR')
    parser.add_argument(
        '--limit', type=int, default=1000, help='at most so many images, spread evenly (1000)'
    )
    parser.add_argument('--batch', type=int, default=32, help='images a call (32)')
    parser.add_argument(
        '--image_size',
        type=pixels_option.size,
        default=0,
        help='side in pixels of what it is shown, or H,W (what it was made for)',
    )
    parser.add_argument('--output', metavar='PNG', help='also draw originals over reconstructions')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to this file')
    images_option.add_strict(parser)
    pixels_option.add_bands(parser)
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
