"""Writes the tokens of a whole data set, or of some images: a .npy file, uint16, one row an image,
and beside it a .json that says of what. Killed and started again, it goes on; several hosts write a
file each."""

import math

from beit_jax.data.config import sides
from beit_jax.errors import check, one_of
from beit_jax.settings.run import MeshConfig
from beit_jax.tools import arguments, images_option, outputs, pixels_option, processes_option


def run(options) -> None:
    import jax

    from beit_jax.inference.pictures import pictures_of_data, pictures_of_path
    from beit_jax.inference.tokenizing import Export, fill
    from beit_jax.models.tokenizers import PRECISIONS
    from beit_jax.train.sharding import make_mesh
    from beit_jax.weights import tokenizer as weights

    one_of('--precision', options.precision, PRECISIONS)
    check(options.batch > 0, f'--batch is {options.batch}: use at least 1.')
    inputs = [options.images, getattr(options, 'data.path')]
    output = outputs.file('--output', options.output, inputs)
    process, processes = processes_option.start(options)
    tokenizer, params = weights.load_tokenizer(options.tokenizer, options.precision)
    size = pixels_option.picture_size(options, tokenizer)
    tokens = math.prod(side // tokenizer.factor for side in sides(size))
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    batch = -(-options.batch // mesh.size) * mesh.size
    if options.images:
        pictures = pictures_of_path(
            options.images, size, pixels_option.format_for(options, tokenizer)
        )
    else:
        data = pixels_option.data_for(options, tokenizer, size)
        pictures = pictures_of_data(data, options.part, tokenizer.resampling)
    first, last = (pictures.count * p // processes for p in (process, process + 1))
    description = pictures.description | {
        'tokenizer': weights.fingerprint(tokenizer, params),
        'vocabulary': tokenizer.vocabulary,
        'precision': options.precision,
        'image_size': size,
        'batch': batch,
        'first': first,
    }
    if processes > 1:
        output = output.with_name(f'{output.stem}-{process:05}-of-{processes:05}{output.suffix}')
    export = Export(output, description, last - first, tokens)
    if export.complete:
        print(f'{output} is complete already: {last - first:,} images')
        return
    fill(export, pictures, first, tokenizer, params, mesh, batch, options.strict)
    bad = f' ({len(export.bad)} that cannot be read have tokens 0)' * bool(export.bad)
    print(f'{last - first:,} images x {tokens} tokens{bad}, uint16 -> {output}')


def _arguments():
    parser = arguments.parser(
        'tokenize',
        __doc__,
        'python -m beit_jax.tools.tokenize --tokenizer tokenizers/dalle --data.name tfds '
        '--data.path /tfds/imagenet2012/5.1.0 --output ids.npy',
    )
    parser.add_argument('--tokenizer', required=True, type=arguments.path, metavar='DIR')
    parser.add_argument(
        '--output',
        required=True,
        metavar='NPY',
        help='the file to write; several hosts add -PROCESS-of-PROCESSES to its name',
    )
    images_option.add(parser, ', instead of --data')
    images_option.add_part(parser)
    parser.add_argument(
        '--precision',
        default='float32',
        help='of the products: float32, bfloat16_3x or tensorfloat32, float16, bfloat16 (float32)',
    )
    parser.add_argument('--batch', type=int, default=64, help='images a call on each host (64)')
    parser.add_argument(
        '--image_size',
        type=pixels_option.size,
        default=0,
        help='side in pixels of what the tokenizer is shown, or H,W (what it was made for)',
    )
    processes_option.add(parser)
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
