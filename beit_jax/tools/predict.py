"""What a checkpoint says of images: classes with probabilities, or numbers (fine-tuned), visual
tokens (pre-trained), features of layers, or the class of each pixel (segmentation): then --output
is a folder, and gets a PNG an image, whose pixels are the classes, with a palette."""

from pathlib import Path

import numpy as np

from beit_jax.errors import check, one_of
from beit_jax.settings.mapping import from_mapping
from beit_jax.tools import arguments, checkpoint_option, images_option, outputs
from beit_jax.train.workdir.prediction_table import class_name

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of --multiscale: mmsegmentation's


def run(options) -> None:
    from beit_jax.inference.predicting import WHAT, write_predictions
    from beit_jax.models.architecture import segments

    what, suffix = options.what, Path(options.output or '').suffix
    one_of('--what', what, WHAT)
    check(options.top > 0 and options.batch_size > 0, '--top and --batch_size must be positive.')
    if suffix:
        inputs = [options.images, options.checkpoint]
        output = outputs.file('--output', options.output, inputs, ('.npz', '.csv'))
    else:
        output = outputs.folder('--output', options.output, [options.images])
    check(0 <= options.threshold <= 1, '--threshold is a probability, from 0 to 1.')
    if what != 'classes':
        check(suffix != '.csv', f'--what={what} is an array: give an --output that ends in .npz.')
        check(bool(suffix), f'--what={what} needs an --output that ends in .npz.')
    check(what == 'features' or not options.layers, '--layers are of --what=features.')
    model = arguments.load(options.checkpoint, options.dtype)
    if what == 'classes' and segments(model.architecture):
        _label(options, model, output)
        return
    check(suffix or not output, f'--output={output}: give a file that ends in .npz or .csv.')
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    left_out, limit = images_option.LeftOut(options), options.limit or None
    given = options.images, options.batch_size, limit, left_out, options.layers
    shown = options.top, options.threshold
    count, table = write_predictions(output, *shown, model, what, *given)
    if table:
        print(table.in_words())
    if suffix or left_out.count:
        print(f'{count} images{left_out}{f" -> {output}" if suffix else ""}')


def _label(options, model, output: Path | None) -> None:
    """Writes the label map of each image."""
    from beit_jax.inference.labelling import label_pictures
    from beit_jax.inference.predicting import SHOWN
    from beit_jax.tasks.segment import InferenceConfig

    check(
        bool(output) and not output.suffix,
        f'--output={options.output}: this checkpoint labels pixels; give a folder for the PNGs.',
    )
    settings = dict(model.architecture.get('inference', {}))
    if options.multiscale:
        settings |= {'scales': SCALES, 'flip': True}
    settings['windows'] = min(options.batch_size, InferenceConfig.windows)
    config = from_mapping(InferenceConfig, settings, 'inference.')
    left_out, limit = images_option.LeftOut(options), options.limit or None
    pixels = label_pictures(model, options.images, output, config, limit, left_out)
    for number in np.argsort(-pixels, kind='stable')[:SHOWN]:
        if pixels[number]:
            share, name = pixels[number] / pixels.sum(), class_name(model.classes, number)
            print(f'{share:6.1%} of the pixels: {name} ({number})')
    print(f'{pixels.sum():,} pixels{left_out} -> {output}')


def _arguments():
    parser = arguments.parser(
        'predict',
        __doc__,
        'python -m beit_jax.tools.predict --checkpoint runs/quickstart/finetune --images DIR '
        '--output predictions.csv',
    )
    checkpoint_option.add(parser)
    images_option.add(parser, '', required=True)
    parser.add_argument(
        '--what',
        default='classes',
        help='classes, features (of layers: `cls` and `mean` [B, L, D]) or tokens (classes)',
    )
    parser.add_argument(
        '--layers', type=int, nargs='+', help='of features: from 1, or from the last, -1 (all)'
    )
    parser.add_argument('--dtype', default='float32', help='float32 or bfloat16 (float32)')
    parser.add_argument(
        '--output',
        help='.csv (classes) or .npz: `logits`, `tokens`, or `cls` and `mean`; `paths`; `labels`; '
        'or, for the classes of pixels, a folder',
    )
    parser.add_argument(
        '--multiscale',
        action='store_true',
        help='classes of pixels: average six scales, 0.5 to 1.75, and flips',
    )
    parser.add_argument('--top', type=int, default=5, help='classes an image (5)')
    parser.add_argument(
        '--threshold', type=float, default=0.0, help='only classes of so high a probability (0)'
    )
    parser.add_argument('--limit', type=int, default=0, help='at most so many images')
    parser.add_argument(
        '--batch_size', type=int, default=64, help='images at a time (64), or windows of them (16)'
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
