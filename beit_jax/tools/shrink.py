"""Small copies of large pictures, as JPEG files in a folder a class: a training decodes each many
times, and decoding twelve million pixels takes longer than a step on a few. Stopped, the same
command goes on. Pictures that cannot be read are named and left out."""

from beit_jax.data.recognition import kind_of
from beit_jax.data.small_copies import write_copies
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import check
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    check(options.size >= 8, f'--size is {options.size}: use at least 8 pixels.')
    path = getattr(options, 'data.path')
    if not getattr(options, 'data.name'):
        setattr(options, 'data.name', kind_of(path, '--data.path') if path else 'folder')
    data = arguments.data_config(options)
    output = outputs.folder('--output', options.output, [data.path])
    source = open_source(data, 'train')
    copies = write_copies(source, data, options.size, output)
    print(
        f'{copies.written + copies.there:,} of {len(source):,} pictures in {output}, of which '
        f'{copies.there:,} were there already'
    )
    if copies.bad:
        named = ', '.join(source.name(index) for index in copies.bad[:3])
        more = ', ...' * (len(copies.bad) > 3)
        print(f'left out, for they cannot be read: {named}{more}. Why: check_data')


def _arguments():
    parser = arguments.parser(
        'shrink',
        __doc__,
        'python -m beit_jax.tools.shrink --data.path=DIR --size=448 --output=SMALL',
    )
    parser.add_argument(
        '--size',
        type=int,
        required=True,
        help='the shorter side of a copy, in pixels: twice image_size leaves a crop of a quarter '
        'of the picture as sharp as it was',
    )
    parser.add_argument('--output', required=True, metavar='DIR', help='the folder to write into')
    arguments.add_data(parser)
    parser.set_defaults(**{'data.name': ''})
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
