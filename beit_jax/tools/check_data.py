"""Can this data set be trained on? Reads it as training would, decodes every picture in full, and
says what is there, what is wrong, how fast that was, and how to train on it. Which kind of data it
is, --data.path says. Exit status 2: it is not usable as it is."""

import dataclasses
import functools
import os
import warnings

from PIL import Image

from beit_jax.data import layout
from beit_jax.data.config import DataConfig, PixelFormat
from beit_jax.data.inspection import empty_folders, measure
from beit_jax.data.inspection_report import channel_settings, command, problems, report
from beit_jax.data.pictures.boxes import whole_box
from beit_jax.data.pictures.decode import image_ops
from beit_jax.data.recognition import kind_of
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import together
from beit_jax.data.stores import storage
from beit_jax.errors import check, shown
from beit_jax.tools import arguments, outputs

PRETRAIN = '--config=configs/pretrain_imagenet1k.py:base --workdir=W'
SEGMENT = '--config=configs/segment_ade20k.py:base --workdir=S --config.init=W'
# in1k: the mean and deviation of that pre-training
FINETUNE = '--config=configs/finetune_imagenet1k.py:base,in1k --workdir=F --config.init=W'


def run(options) -> None:
    check(
        options.limit >= 0, f'--limit is {options.limit}: use a number of examples, or 0 for all.'
    )
    check(
        0 <= options.max_bad_share <= 1,
        f'--max_bad_share is {options.max_bad_share}: use a share from 0 to 1.',
    )
    path = getattr(options, 'data.path')
    if not getattr(options, 'data.name'):
        form = (getattr(options, f'data.{name}') for name in ('channels', 'bits', 'bands'))
        rgb = PixelFormat(*form) == PixelFormat()
        kind = kind_of(path, '--data.path', rgb) if path else DataConfig.name
        setattr(options, 'data.name', kind)
    data = arguments.data_config(options)
    json_file = outputs.file('--json', options.json, [data.path, data.evaluate_path])
    Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow,
    warnings.filterwarnings('ignore', module='PIL')  # and what it says of them names no file
    local = data.name == 'folder' and os.path.isdir(data.path)
    annotated = layout.annotated(data)
    if annotated:
        source, held_out = annotated.images, None
    else:
        source, held_out = open_source(data, 'train'), open_source(data, 'evaluate')
    decode = functools.partial(image_ops(data).decode_crop, box_of=whole_box, reading=data.reading)
    figures = measure(source, held_out, options.limit, data.num_workers, decode)
    if data.name == 'folder':
        figures['empty_classes'] += empty_folders(data.path, source)
    parts = None if annotated else layout.parts_of_a_set(source, data.path)
    doubts = [parts.in_words('--data.')] if parts else []
    figures |= {'left_out': {}, 'strays': [], 'doubts': doubts, 'annotations': None}
    if local:
        figures['left_out'] = layout.left_out(data.path)
        figures['strays'] = layout.strays(source, data.path)
    if annotated:
        look = layout.annotations(annotated, options.limit, data.num_workers)
        figures['annotations'] = look
    figures['problems'] = problems(figures, options.max_bad_share)
    figures['usable'] = not figures['problems']
    chunk = together(source) if together(source) > 1 else 0
    meant = dataclasses.replace(data, chunk=chunk, **(parts.meant if parts else {}))
    named = (*arguments.DATA, 'chunk')
    train_with = functools.partial(command, meant, named, figures['corrupt_share'])
    more = channel_settings(figures['channels'])
    figures['command'] = train_with(PRETRAIN, '--config.tokenizer.path=TOKENIZER', *more)
    finetune = [*more, '--config.rand_augment='] if more else []
    classes = source.class_names if not parts else storage.list_folder(meant.path)[0]
    figures['finetune_command'] = train_with(FINETUNE, *finetune) if classes else None
    if annotated:
        reduced = layout.is_reduced(data.path, look)
        given = [f'--config.data.reduce_zero_label={str(reduced).lower()}', *more]
        figures['command'] = train_with(SEGMENT, *given, *['--config.distort=false'] * bool(more))
    print(report(figures, shown(data.path or data.name)))
    outputs.write(json_file, figures, indent=1)
    check(figures['usable'], '\n'.join(figures['problems']))


def _arguments():
    parser = arguments.parser(
        'check_data',
        __doc__,
        'python -m beit_jax.tools.check_data --data.path /imagenet/train --data.evaluate_path '
        '/imagenet/val --json train.json',
    )
    parser.add_argument(
        '--limit',
        type=int,
        default=0,
        metavar='N',
        help='look at N evenly spread examples only (0: all)',
    )
    parser.add_argument(
        '--max_bad_share',
        type=float,
        default=DataConfig.max_bad_share,
        metavar='SHARE',
        help='of corrupt examples, above which the set is not usable (%(default)s)',
    )
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='also write the figures, and all names, to this file',
    )
    arguments.add_data(parser)
    parser.set_defaults(**{'data.name': ''})  # what lies at the path says it
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
