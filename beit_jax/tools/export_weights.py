"""Writes a model for others: as transformers, timm or the official code load it, or for JAX
alone, with a model card. Needs no PyTorch.

huggingface: model.safetensors, config.json, preprocessor_config.json.
timm: model.safetensors, config.json.
unilm: model.safetensors, and model.pth for torch.load, whose pickle names nothing but tensors
(torch.load(weights_only=True) takes it).
stablehlo: programs (jax.export) for CPU, TPU and GPU that take any number of pictures, weights.npz,
preprocessing.json."""

from beit_jax.errors import check, one_of
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    from beit_jax.weights.exports import FORMATS, write_export
    from beit_jax.weights.models import load_model

    one_of('--format', options.format, FORMATS)
    check(
        options.format == 'stablehlo' or options.dtype == 'float32',
        f'--dtype is of the programs of stablehlo: {options.format} gets weights in float32.',
    )
    output = outputs.folder('--output', options.output, new=True)
    model = load_model(options.input, options.dtype)
    exported, checksums = write_export(model, output, options.format)
    for note in exported.notes:
        print(f'note: {note}')
    tensors = exported.tensors.values()
    count = sum(tensor.size for tensor in tensors if tensor.dtype.kind == 'f')
    files = ', '.join(f'{name} {digest[:12]}' for name, digest in checksums.items())
    print(f'{count:,} parameters in {len(tensors)} tensors -> {output}: {files}')


def _arguments():
    parser = arguments.parser(
        'export_weights',
        __doc__,
        'python -m beit_jax.tools.export_weights --input runs/quickstart/finetune '
        '--format huggingface --output exported',
    )
    parser.add_argument(
        '--input',
        required=True,
        type=arguments.path,
        metavar='PATH',
        help='a checkpoint, a work directory, or weights of another format',
    )
    parser.add_argument('--format', required=True, help='huggingface, timm, unilm or stablehlo')
    parser.add_argument(
        '--dtype', default='float32', help='of the products of stablehlo: float32 or bfloat16'
    )
    parser.add_argument('--output', required=True, metavar='DIR', help='the directory to write')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
