"""Unpacks ImageNet's archives as they are downloaded: into folders, class tars or WebDataset
shards. Killed, or stopped by a full disk (status 74), the same command goes on where it ended, and
compares what is there with its checksum.

--train: ILSVRC2012_img_train.tar, or the folder of class tars that winter21_whole.tar.gz holds.
--val: ILSVRC2012_img_val.tar, which takes --labels: ILSVRC2012_devkit_t12.tar.gz, which
image-net.org has beside it; or ILSVRC/Data/CLS-LOC/val of Kaggle's ImageNet Object Localization
Challenge with its LOC_val_solution.csv."""

from beit_jax.data.preparing import LAYOUTS, prepare
from beit_jax.data.sources.class_tars import ClassTarsSource
from beit_jax.data.sources.labelled import Labelled, read_labels
from beit_jax.errors import check, one_of
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    one_of('--layout', options.layout, LAYOUTS)
    check(bool(options.train or options.val), 'give --train, or --val with --labels, or both.')
    check(
        bool(options.val) == bool(options.labels),
        '--val and --labels belong together: the labels are in ILSVRC2012_devkit_t12.tar.gz, or in '
        "Kaggle's LOC_val_solution.csv.",
    )
    check(options.samples > 0, f'--samples is {options.samples}: use at least 1.')
    output = outputs.folder('--output', options.output, [options.train, options.val])
    parts, class_names = {}, None
    if options.train:
        parts['train'] = ClassTarsSource(options.train, key='--train')
        class_names = parts['train'].class_names
    if options.val:
        labels = read_labels(options.labels, '--labels')
        parts['validation'] = Labelled(options.val, labels, class_names, '--val')
    for part, source in parts.items():
        done = prepare(source, output, part, options.layout, options.samples, options.ordered)
        print(
            f'{part}: {len(source):,} pictures of {len(source.class_names):,} classes in {output}: '
            f'{done.units:,} {"tars" if options.layout != "folder" else "folders"}, of which '
            f'{done.found:,} were there already, as they were written'
        )
    settings = {'name': options.layout, 'path': output / 'train', 'evaluate_path': ''}
    if options.layout == 'webdataset':
        settings |= {'path': output, 'evaluate_split': 'validation' * ('validation' in parts)}
    elif 'validation' in parts:
        settings['evaluate_path'] = output / 'validation'
    given = [f'--config.data.{name}={value}' for name, value in settings.items() if value]
    print('train with', *given)


def _arguments():
    parser = arguments.parser(
        'prepare',
        __doc__,
        'python -m beit_jax.tools.prepare --train ILSVRC2012_img_train.tar --val '
        'ILSVRC2012_img_val.tar --labels ILSVRC2012_devkit_t12.tar.gz --output /imagenet',
    )
    parser.add_argument('--train', type=arguments.path, metavar='PATH', help='class tars')
    parser.add_argument('--val', type=arguments.path, metavar='PATH', help='held-out pictures')
    parser.add_argument('--labels', type=arguments.path, metavar='FILE', help='their classes')
    parser.add_argument('--output', required=True, metavar='DIR', help='the folder to write into')
    parser.add_argument('--layout', default='folder', help=f'{", ".join(LAYOUTS)} (folder)')
    parser.add_argument(
        '--samples', type=int, default=1000, metavar='N', help='in a shard of webdataset (1000)'
    )
    parser.add_argument(
        '--ordered',
        action='store_true',
        help='shards hold the pictures sorted by class, not in random order',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
