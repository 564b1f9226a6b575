"""Writes a model for PyTorch: as transformers, timm or the official code load it,
with a model card. Needs no PyTorch.

huggingface: model.safetensors, config.json, preprocessor_config.json.
timm: model.safetensors, config.json.
unilm: model.safetensors, and model.pth for torch.load, whose pickle names nothing but tensors
(torch.load(weights_only=True) takes it)."""

from beit_jax.errors import one_of
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    from beit_jax.weights.models import load_model
    from beit_jax.weights.pytorch.export_folder import held_out_metrics, in_dialect, write_folder
    from beit_jax.weights.pytorch.names import DIALECTS

    one_of('--format', options.format, DIALECTS)
    output = outputs.folder('--output', options.output, new=True)
    model = load_model(options.input)
    exported = in_dialect(model, options.format)
    metrics = held_out_metrics(options.input)
    checksums = write_folder(output, exported, model, metrics)
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
    parser.add_argument('--format', required=True, help='huggingface, timm or unilm')
    parser.add_argument('--output', required=True, metavar='DIR', help='the directory to write')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
