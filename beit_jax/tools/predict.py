"""What a checkpoint says of images: classes with probabilities (fine-tuned), visual tokens
(pre-trained), features of every layer, or the class of each pixel (segmentation): then --output is
a folder, and gets a PNG an image, whose pixels are the classes, with a palette."""

import csv
from pathlib import Path

from flax import nnx
import jax
import numpy as np

from beit_jax.data.pictures.label_pictures import label_png
from beit_jax.data.pictures.load import image_batches, whole_images
from beit_jax.errors import check, one_of
from beit_jax.images.color import normalize, to_float
from beit_jax.models.architecture import segments
from beit_jax.settings.mapping import from_mapping
from beit_jax.tasks.segment import InferenceConfig
from beit_jax.tools import arguments
from beit_jax.train.metrics import class_name, prediction_header, prediction_row
from beit_jax.train.segmentation import PictureLabeller
from beit_jax.weights.models import pad_rows

WHAT = ('classes', 'features', 'tokens')
SHOWN = 20  # rows of the table on the terminal
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of --multiscale: mmsegmentation's


def run(options) -> None:
    one_of('--what', options.what, WHAT)
    check(options.top > 0 and options.batch_size > 0, '--top and --batch_size must be positive.')
    suffix = Path(options.output).suffix if options.output else ''
    check(
        suffix in ('', '.npz', '.csv'),
        f'--output={options.output}: give a file that ends in .npz or .csv.',
    )
    check(
        suffix != '.csv' or options.what == 'classes',
        f'--what={options.what} is an array: give an --output that ends in .npz.',
    )
    check(
        bool(suffix) or options.what == 'classes',
        f'--what={options.what} needs an --output that ends in .npz.',
    )
    model = arguments.load(options.checkpoint)
    if options.what == 'classes' and segments(model.architecture):
        _label(options, model)
        return
    compute = {
        'classes': lambda images: {'logits': model.logits(images)},
        'tokens': lambda images: {'tokens': model.tokens(images)},
        'features': lambda images: {
            name: value.swapaxes(0, 1) for name, value in model.features(images).items()
        },
    }[options.what]
    paths, parts = [], []
    for images, names in image_batches(
        options.images, model.image_size, options.batch_size, options.limit or None, model.crop
    ):
        made = jax.device_get(compute(pad_rows(images, options.batch_size)))
        parts.append({name: value[: len(images)] for name, value in made.items()})
        paths += names
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = model.classes
    classes = (
        [class_name(names, i) for i in range(arrays['logits'].shape[1])]
        if options.what == 'classes'
        else names
    )
    labels = _labels(paths, classes)
    if options.what == 'classes':
        _show(
            paths,
            labels,
            classes,
            arrays['logits'],
            options.top,
            options.output if suffix == '.csv' else '',
        )
    if suffix == '.npz':
        np.savez(options.output, paths=np.array(paths), labels=labels, **arrays)
    if suffix:
        print(f'{len(paths)} images -> {options.output}')


def _label(options, model) -> None:
    """Writes the label map of each image, by windows of the model's size as in evaluation."""
    output, images = Path(options.output), Path(options.images)
    check(
        bool(options.output) and not output.suffix,
        f'--output={options.output}: this checkpoint labels pixels; give a folder for the PNGs.',
    )
    architecture = model.architecture
    settings = architecture.get('inference', {}) | (
        {'scales': SCALES, 'flip': True} if options.multiscale else {}
    )
    config = from_mapping(
        InferenceConfig,
        settings | {'windows': min(options.batch_size, InferenceConfig.windows)},
        'inference.',
    )

    def label_windows(params, windows):
        pixels = normalize(to_float(windows), architecture['mean'], architecture['std'])
        return nnx.merge(model.graphdef, params)(pixels)[0]

    labeller = PictureLabeller(
        label_windows, model.image_size, config, jax.local_devices(), architecture['mean']
    )
    pictures = (
        (name, np.asarray(image))
        for image, name in whole_images(options.images, options.limit or None)
    )
    pixels = np.zeros(256, np.int64)
    for name, image, scores in labeller(model.params, pictures):
        label_map = np.asarray(labeller.classify(image, scores)[0])[
            : image.shape[0], : image.shape[1]
        ]
        path = output / (Path(name).relative_to(images) if images.is_dir() else Path(name).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        label_png(label_map).save(path.with_name(path.stem + '.png'))
        pixels += np.bincount(label_map.ravel(), minlength=256)
    for number in np.argsort(-pixels, kind='stable')[:SHOWN]:
        if pixels[number]:
            print(
                f'{pixels[number] / pixels.sum():6.1%} of the pixels: '
                f'{class_name(model.classes, number)} ({number})'
            )
    print(f'{pixels.sum():,} pixels -> {output}')


def _labels(paths, classes) -> np.ndarray:
    """The class that a folder on the way to each image names, int32; -1 where none does."""
    number = {name: i for i, name in enumerate(classes)}
    folders = ([part for part in Path(path).parts[:-1] if part in number] for path in paths)
    return np.array([number[found[-1]] if found else -1 for found in folders], np.int32)


def _show(paths, labels, classes, logits, top, output) -> None:
    """Prints the first rows and, where labels are known, the accuracy; writes all rows to
    `output`."""
    top = min(top, len(classes))
    probabilities = np.asarray(jax.nn.softmax(logits))
    best = np.argsort(-probabilities, axis=-1, kind='stable')[:, :top]
    rows = [
        prediction_row(
            path, classes[label] if label >= 0 else '', [classes[i] for i in order], shares[order]
        )
        for path, label, order, shares in zip(paths, labels, best, probabilities)
    ]
    width = min(60, max(len(path) for path in paths))
    for path, row in zip(paths[:SHOWN], rows):
        print(
            f'{path[-width:]:{width}}  '
            + '  '.join(f'{name} {float(share):.3f}' for name, share in zip(row[2::2], row[3::2]))
        )
    if len(rows) > SHOWN:
        print(f'... {len(rows) - SHOWN} more')
    known = labels >= 0
    if known.any():
        print(
            f'{np.mean(best[known, 0] == labels[known]):.4f} of the {known.sum()} images in a '
            'folder named after a class are given that class'
        )
    if output:
        with open(output, 'w', newline='') as file:
            table = csv.writer(file)
            table.writerow(prediction_header(top))
            table.writerows(rows)


def _arguments():
    parser = arguments.parser(
        'predict',
        __doc__,
        'python -m beit_jax.tools.predict --checkpoint runs/quickstart/finetune --images DIR '
        '--output predictions.csv',
    )
    parser.add_argument(
        '--checkpoint',
        required=True,
        help='a checkpoint, a work directory, or a file or folder of PyTorch weights',
    )
    parser.add_argument(
        '--images', required=True, help='folder, image file, or .npy array [B, H, W, 3]'
    )
    parser.add_argument(
        '--what',
        default='classes',
        help='classes, features (of every layer: `cls` and `mean` [B, L, D]) or tokens (classes)',
    )
    parser.add_argument(
        '--output',
        default='',
        help='.csv (classes) or .npz: `logits`, `tokens`, or `cls` and `mean`; `paths`; `labels`; '
        'or, for the classes of pixels, a folder',
    )
    parser.add_argument(
        '--multiscale',
        action='store_true',
        help='classes of pixels: average six scales, 0.5 to 1.75, and flips',
    )
    parser.add_argument('--top', type=int, default=5, help='classes an image (5)')
    parser.add_argument('--limit', type=int, default=0, help='at most so many images')
    parser.add_argument(
        '--batch_size', type=int, default=64, help='images at a time (64), or windows of them (16)'
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
