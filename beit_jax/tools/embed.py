"""Writes an embedding of each picture of a data set of any size: what a layer of an encoder makes
of it, one row a picture, as .npy or Parquet. Killed and started again, it goes on; several hosts
write parts of one folder.

npy: embeddings.npy [pictures, width] and rows.csv, the name and label of each row.
parquet: part-*.parquet with row, name, label and embedding.
A picture that cannot be read has a row of NaN and no label."""

from beit_jax.data.recognition import kind_of
from beit_jax.errors import check, one_of
from beit_jax.settings.run import MeshConfig
from beit_jax.tools import (
    arguments,
    checkpoint_option,
    images_option,
    outputs,
    processes_option,
)


def run(options) -> None:
    import jax

    from beit_jax.inference.embedding import STORED, embedder, fill, fingerprint
    from beit_jax.inference.parts import FORMATS, open_parts
    from beit_jax.models.heads import POOLINGS
    from beit_jax.train.sharding import make_mesh

    for name, allowed in (('format', FORMATS), ('pool', POOLINGS), ('stored', STORED)):
        one_of(f'--{name}', getattr(options, name), allowed)
    check(options.batch > 0 and options.rows > 0, '--batch and --rows must be positive.')
    path = options.images or getattr(options, 'data.path')
    output = outputs.folder('--output', options.output, [path])
    shard, shards = processes_option.shard(options)
    model = arguments.load(options.checkpoint, options.dtype)
    layer, depth = checkpoint_option.layer(options, model), model.architecture['depth']
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    batch = -(-options.batch // mesh.size) * mesh.size
    pictures = _pictures(options, model)
    about = {name: getattr(options, name) for name in ('format', 'pool', 'dtype', 'stored', 'rows')}
    about |= {'model': fingerprint(model), 'layer': layer, 'width': model.architecture['width']}
    about |= {'images': pictures.count, 'path': path, 'batch': batch, **pictures.description}
    folder = open_parts(output, about | {'classes': list(pictures.classes)})
    first, last = (folder.parts * number // shards for number in (shard, shard + 1))
    embed = embedder(model, layer, options.pool, mesh)
    bad = fill(folder, range(first, last), pictures, embed, batch, options.stored, options.strict)
    what = f'{pictures.count:,} pictures, layer {layer} of {depth}, '
    said = f' ({bad} that cannot be read are NaN: see above)' * bool(bad)
    if folder.finish():
        print(f'{what}{options.stored} [{about["width"]}] each{said} -> {output}')
        return
    missing = len(folder.missing(range(folder.parts)))
    print(f'{what}{last - first} of {folder.parts} parts{said}, {missing} are missing -> {output}')


def _pictures(options, model):
    """Those of --images, which may be any data set, or of --data."""
    from beit_jax.inference.pictures import pictures_of_array, pictures_of_data

    if options.images and options.images.endswith('.npy'):
        return pictures_of_array(options.images, model.image_size, model.crop, model.reading)
    given = images_option.of_model(model)
    if options.images:
        kind = kind_of(options.images, '--images', model.pixels.is_rgb)
        given |= {'name': kind, 'path': options.images}
    return pictures_of_data(arguments.data_config(options, **given), options.part, 'bicubic')


def _arguments():
    parser = arguments.parser(
        'embed',
        __doc__,
        'python -m beit_jax.tools.embed --checkpoint runs/quickstart/pretrain --images DIR '
        '--format npy --output embeddings',
    )
    checkpoint_option.add(parser)
    checkpoint_option.add_layer(parser)
    parser.add_argument(
        '--pool', default='mean', help='of the layer: mean of patches, or cls (mean)'
    )
    images_option.add(parser, ', or any data set that is recognised; else give --data')
    images_option.add_part(parser)
    parser.add_argument('--output', required=True, metavar='DIR', help='the folder to write')
    parser.add_argument('--format', required=True, help='npy or parquet')
    parser.add_argument('--dtype', default='float32', help='of the products: float32 or bfloat16')
    parser.add_argument('--stored', default='float32', help='what is written: float32 or float16')
    parser.add_argument('--rows', type=int, default=8192, help='pictures a part (8192)')
    parser.add_argument('--batch', type=int, default=64, help='images a call on each host (64)')
    processes_option.add(parser)
    processes_option.add_shard(parser)
    arguments.add_data(parser, images_option.OF_MODEL)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
