"""Writes a model for PyTorch: as transformers, timm or the official code load it,
with a model card. Needs no PyTorch.

huggingface: model.safetensors, config.json, preprocessor_config.json.
timm: model.safetensors, config.json.
unilm: model.safetensors, and model.pth for torch.load, whose pickle names nothing but tensors
(torch.load(weights_only=True) takes it).

--push-to writes it to Hugging Face's hub, as who has logged in (`hf auth login`, or HF_TOKEN)."""

from pathlib import Path
import tempfile

from beit_jax.errors import check, one_of
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    from beit_jax.weights.hub import Upload
    from beit_jax.weights.models import load_model
    from beit_jax.weights.pytorch.export_folder import held_out_metrics, in_dialect, write_folder
    from beit_jax.weights.pytorch.names import DIALECTS

    one_of('--format', options.format, DIALECTS)
    name = options.push_to
    check(bool(name or options.output), 'give --output DIR, --push-to OWNER/NAME, or both.')
    check(bool(name) or not (options.private or options.replace), 'these are of --push-to.')
    output = outputs.folder('--output', options.output, new=True)
    upload = Upload(name, options.private, options.replace) if name else None
    model = load_model(options.input)
    exported = in_dialect(model, options.format)
    metrics = held_out_metrics(options.input)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / 'exported'
        checksums = write_folder(folder, exported, model, metrics, name or '')
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
    parser.add_argument('--format', required=True, help='huggingface, timm or unilm')
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
