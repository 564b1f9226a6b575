"""Converts PyTorch weights of BEiT to a checkpoint: of the official code, timm or transformers,
pre-trained or fine-tuned. The architecture is read from the file. Needs no PyTorch, and runs
nothing in the file."""

import jax

from beit_jax.errors import check
from beit_jax.tools import arguments, outputs
from beit_jax.tools.inspect_weights import summary
from beit_jax.train.workdir.checkpoint import Checkpoints
from beit_jax.weights.pytorch.importer import convert, examine
from beit_jax.whole_files import whole_directory


def run(options) -> None:
    output = outputs.folder('--output', options.output, new=True)
    found = examine(options.input, options.mean, options.std)
    params, description = convert(found)
    print('\n'.join(summary(found)))
    with whole_directory(output) as directory:
        checkpoints = Checkpoints(directory)
        checkpoints.save({'params': jax.device_put(params)}, 0, description)
        checkpoints.close()
        check(not checkpoints.owed, '\n'.join(checkpoints.warnings()))
    print(
        f'-> {output}: start from it with --config.init={output}, or beit_jax.load({str(output)!r})'
    )


def _arguments():
    parser = arguments.parser(
        'import_weights',
        __doc__,
        'python -m beit_jax.tools.import_weights --input beit_base_patch16_224_pt22k.pth '
        '--output weights/beit_base',
    )
    parser.add_argument(
        '--input',
        required=True,
        type=arguments.path,
        metavar='PATH',
        help='.pth, .pt, .bin or .safetensors, an index of shards, or a folder',
    )
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='the directory to write: DIR/checkpoints/0'
    )
    parser.add_argument(
        '--mean',
        type=float,
        nargs=3,
        help='of its pixels in [0, 1], where the file does not tell (0.5 0.5 0.5)',
    )
    parser.add_argument('--std', type=float, nargs=3, help='likewise')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
