"""Converts PyTorch weights of BEiT to a checkpoint: of the official code, timm or transformers,
pre-trained or fine-tuned. The architecture is read from the file. Needs no PyTorch, and runs
nothing in the file."""

import itertools

from beit_jax.errors import check
from beit_jax.tools import arguments, outputs
from beit_jax.tools.inspect_weights import summary


def run(options) -> None:
    import jax

    from beit_jax.weights.checkpoint import save_params
    from beit_jax.weights.pytorch.importer import convert, examine

    output = outputs.folder('--output', options.output, new=True)
    found = examine(options.input, options.mean, options.std)
    params, description = convert(found)
    if options.channels:
        params, description = of_channels(params, description, options.channels)
    print('\n'.join(summary(found)))
    save_params(output, jax.device_put(params), description)
    print(
        f'-> {output}: start from it with --config.init={output}, or beit_jax.load({str(output)!r})'
    )


def of_channels(params, description: dict, channels: int) -> tuple:
    """(parameters, description) of a model for pictures of other channels; mean and deviation are
    repeated."""
    from beit_jax.models.architecture import predicts_tokens
    from beit_jax.weights.channels import fit_channels

    architecture = description['architecture']
    check(channels > 0, f'--channels is {channels}: use at least 1.')
    check(
        predicts_tokens(architecture) or 'num_classes' in architecture,
        '--channels: a model that predicts pixels predicts those of its own channels.',
    )
    encoder, notes = fit_channels(params['encoder'], architecture['channels'], channels)
    changed = {'channels': channels}
    for name in ('mean', 'std'):
        values = itertools.islice(itertools.cycle(architecture[name]), channels)
        changed[name] = list(values)
    description |= {'architecture': architecture | changed, 'notes': description['notes'] + notes}
    return params | {'encoder': encoder}, description


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
        help='.pth, .pt, .bin, .safetensors, an index of shards, a folder, OWNER/NAME on the hub',
    )
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='the directory to write: DIR/checkpoints/0'
    )
    parser.add_argument(
        '--mean',
        type=float,
        nargs='+',
        help='of its pixels in [0, 1], where the file does not tell (0.5 0.5 0.5)',
    )
    parser.add_argument('--std', type=float, nargs='+', help='likewise')
    parser.add_argument(
        '--channels',
        type=int,
        default=0,
        help='for pictures of so many channels: its kernels are repeated, or added up for one',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
