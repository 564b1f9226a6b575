"""Writes a model for PyTorch: as transformers, timm or the official code load it, with a model
card. Needs no PyTorch.

huggingface: model.safetensors, config.json, preprocessor_config.json. timm: model.safetensors,
config.json. unilm: model.safetensors, and model.pth for torch.load, whose pickle names nothing but
tensors (torch.load(weights_only=True) takes it)."""

import json
from pathlib import Path

import safetensors.numpy

from beit_jax.errors import one_of
from beit_jax.models.architecture import patch_target
from beit_jax.models.encoder import EncoderConfig
from beit_jax.tools import arguments
from beit_jax.weights import export
from beit_jax.weights.card import model_card
from beit_jax.weights.checkpoint import find_checkpoint, is_checkpoint
from beit_jax.weights.facts import metadata
from beit_jax.weights.files import METADATA
from beit_jax.weights.models import load_model
from beit_jax.weights.names import DIALECTS
from beit_jax.weights.torch_files import write_torch_file
from beit_jax.whole_files import sha256, whole_directory, whole_lines


def run(options) -> None:
    one_of('--format', options.format, DIALECTS)
    model, dialect = load_model(options.input), options.format
    params, architecture, classes, notes = (
        model.params,
        model.architecture,
        list(model.classes),
        list(model.notes),
    )
    target = patch_target(architecture)
    if target == 'pixels' or (target and dialect == 'timm'):
        params, architecture = export.headless(params, architecture)
        lacking = 'masked image model' if target == 'tokens' else 'model that predicts pixels'
        notes.append(f'{dialect} has no {lacking}: mask token and {target[:-1]} head are left out')
    # theirs too, which no file can change
    if dialect != 'huggingface' and architecture['norm_eps'] != EncoderConfig.norm_eps:
        notes.append(
            f'its norms ran with eps {architecture["norm_eps"]:g}; {dialect} has '
            f'{EncoderConfig.norm_eps:g}: results differ a little'
        )
    tensors, config, processor = export.to_tensors(params, architecture, dialect), {}, {}
    if dialect == 'huggingface':
        config, processor = (
            export.huggingface_config(architecture, classes),
            export.huggingface_processor(architecture),
        )
    elif dialect == 'timm':
        config = export.timm_config(architecture, classes)
    with whole_directory(Path(options.output)) as directory:
        # others have JSON for it
        header = (
            {METADATA: json.dumps(metadata(architecture, model.classes))}
            if dialect == 'unilm'
            else {}
        )
        safetensors.numpy.save_file(
            tensors, directory / 'model.safetensors', {'format': 'pt'} | header
        )
        if dialect == 'unilm':
            write_torch_file(directory / 'model.pth', tensors)
        checksums = {file.name: sha256(file) for file in sorted(directory.iterdir())}
        for name, content in (('config.json', config), ('preprocessor_config.json', processor)):
            if content:
                (directory / name).write_text(
                    json.dumps(content, indent=2, ensure_ascii=False) + '\n'
                )
        described = model.description | {'architecture': architecture}
        card = model_card(
            dialect,
            described,
            _metrics(options.input),
            checksums,
            notes,
            model=config.get('architectures', [''])[0],
        )
        (directory / 'README.md').write_text(card)
    for note in notes:
        print(f'note: {note}')
    count = sum(tensor.size for tensor in tensors.values() if tensor.dtype.kind == 'f')
    print(
        f'{count:,} parameters in {len(tensors)} tensors -> {options.output}: '
        + ', '.join(f'{name} {digest[:12]}' for name, digest in checksums.items())
    )


def _metrics(path: str) -> dict:
    """What the run of a checkpoint measured on held-out images at its step."""
    if not is_checkpoint(path):
        return {}
    checkpoint = find_checkpoint(path)
    rows = map(json.loads, whole_lines(checkpoint.parents[1] / 'metrics.jsonl'))
    return {
        name.removeprefix('eval/'): value
        for row in rows
        if str(row['step']) == checkpoint.name
        for name, value in row.items()
        if name.startswith('eval/') and value is not None
    }


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
        metavar='PATH',
        help='a checkpoint, a work directory, or weights of another format',
    )
    parser.add_argument('--format', required=True, help=f'{", ".join(DIALECTS)}')
    parser.add_argument('--output', required=True, metavar='DIR', help='the directory to write')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
