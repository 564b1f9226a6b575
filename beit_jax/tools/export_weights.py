"""Writes a model for others: as transformers, timm or the official code load it, or for JAX
alone, with a model card. Needs no PyTorch.

huggingface: model.safetensors, config.json, preprocessor_config.json.
timm: model.safetensors, config.json.
unilm: model.safetensors, and model.pth for torch.load, whose pickle names nothing but tensors
(torch.load(weights_only=True) takes it).
stablehlo: programs (jax.export) for CPU, TPU and GPU that take any number of pictures, weights.npz,
preprocessing.json.

--push-to writes it to Hugging Face's hub, as who has logged in (`hf auth login`, or HF_TOKEN)."""

from pathlib import Path
import tempfile

from beit_jax.errors import check, one_of
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    from beit_jax.weights.exports import FORMATS, write_export
    from beit_jax.weights.hub import Upload
    from beit_jax.weights.models import load_model

    one_of('--format', options.format, FORMATS)
    name, programs = options.push_to, options.format == 'stablehlo'
    push = name is not None
    check(push or options.output is not None, 'give --output DIR, --push-to OWNER/NAME, or both.')
    check(
        push or not (options.private or options.replace), '--private and --replace need --push-to.'
    )
    check(not (push and programs), '--push-to is of weights, not of the programs of stablehlo.')
    check(
        programs or options.dtype == 'float32',
        f'--dtype is of the programs of stablehlo: {options.format} gets weights in float32.',
    )
    output = outputs.folder('--output', options.output, new=True)
    upload = Upload(name, options.private, options.replace) if push else None
    model = load_model(options.input, options.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / 'exported'
        exported, checksums = write_export(model, folder, options.format, name or '')
        place = upload.push(folder) if upload else output
    for note in exported.notes:
        print(f'note: {note}')
    tensors = exported.tensors.values()
    count = sum(tensor.size for tensor in tensors if tensor.dtype.kind == 'f')
    files = ', '.join(f'{name} {digest[:12]}' for name, digest in checksums.items())
    print(f'{count:,} parameters in {len(tensors)} tensors -> {place}: {files}')


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
        help='a checkpoint, a work directory, weights of another format, or OWNER/NAME on the hub',
    )
    parser.add_argument('--format', required=True, help='huggingface, timm, unilm or stablehlo')
    parser.add_argument(
        '--dtype', default='float32', help='of the products of stablehlo: float32 or bfloat16'
    )
    parser.add_argument('--output', metavar='DIR', help='the directory to write')
    parser.add_argument(
        '--push-to', metavar='OWNER/NAME', help="the repository of Hugging Face's hub to write"
    )
    parser.add_argument(
        '--private', action='store_true', help='a new repository that nobody else sees'
    )
    parser.add_argument(
        '--replace', action='store_true', help='write over the model that the repository has'
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
