"""What does an encoder find alike? Pictures, and beside each those whose features are nearest to
its own: of a run held-out pictures, among those that it was trained on."""

import os
from pathlib import Path

from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.grid import grid_picture, visible
from beit_jax.data.pictures.load import load_images
from beit_jax.data.recognition import kind_of
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.subset import Subset, spread
from beit_jax.errors import check
from beit_jax.settings.mapping import task_config
from beit_jax.tools import arguments, checkpoint_option, images_option, outputs, pixels_option
from beit_jax.whole_files import read_json


def data_of(options, model) -> DataConfig:
    """The pictures that may be neighbours: the training images of the run, or --among."""
    path = Path(options.checkpoint) / 'config.json'
    settings = read_json(path, 'give the work directory of a run') if path.is_file() else {}
    if 'task' in settings and not options.among:
        return task_config(settings).data
    check(
        bool(options.among) and options.images != images_option.HELD_OUT,
        f'--checkpoint={options.checkpoint} is no work directory of a run, or --among is given '
        'alone: give both, --images DIR --among DIR.',
    )
    kind = kind_of(options.among, '--among', model.pixels.is_rgb)
    return DataConfig(name=kind, path=options.among, **images_option.of_model(model))


def run(options) -> None:
    from beit_jax.inference.alike import alike

    for name in ('limit', 'pictures', 'neighbours'):
        number = getattr(options, name)
        check(number > 0, f'--{name} is {number}: use at least 1.')
    output = outputs.file('--output', options.output, [options.images], outputs.PICTURE)
    model = arguments.load(options.checkpoint)
    layer = checkpoint_option.layer(options, model)
    pixels_option.check_bands(options, model.pixels.num_channels)
    data, left_out = data_of(options, model), images_option.LeftOut(options)
    if options.images == images_option.HELD_OUT:
        views = (data.view('image'),)
        made, names = images_option.held_out(data, views, options.pictures, left_out)
        asked = made['image']
    else:
        which = options.images, model.image_size, options.pictures, model.crop, left_out
        asked, names = load_images(*which, model.reading)
    bank = open_source(data, 'train')
    bank = Subset(bank, spread(bank, options.limit))
    found = alike(model, layer, asked, names, bank, data, options.neighbours, left_out)
    output.parent.mkdir(parents=True, exist_ok=True)
    titles = 'picture', *map(str, range(1, len(found) + 1))
    grid_picture([visible(each, options.bands) for each in (asked, *found)], titles).save(output)
    print(f'{len(asked)} pictures among {len(bank):,}{left_out}, layer {layer} -> {output}')


def _arguments():
    parser = arguments.parser(
        'neighbours',
        __doc__,
        'python -m beit_jax.tools.neighbours --checkpoint runs/quickstart/pretrain '
        '--output neighbours.png',
    )
    parser.add_argument(
        '--checkpoint',
        required=True,
        type=arguments.path,
        help='a work directory; or a checkpoint, a file or folder of PyTorch weights, with --among',
    )
    images_option.add(
        parser, ', or `held_out` (those of the run: the default)', default=images_option.HELD_OUT
    )
    parser.add_argument(
        '--among',
        default='',
        type=os.path.expanduser,
        help='pictures that may be neighbours, a data set (the training images of the run)',
    )
    pixels_option.add_bands(parser)
    parser.add_argument('--output', required=True, help='the PNG to write')
    parser.add_argument('--pictures', type=int, default=8, help='at most so many rows (8)')
    parser.add_argument('--neighbours', type=int, default=7, help='of each picture (7)')
    parser.add_argument(
        '--limit', type=int, default=5000, help='among at most so many, evenly spread (5000)'
    )
    checkpoint_option.add_layer(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
