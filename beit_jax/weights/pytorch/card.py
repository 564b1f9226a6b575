"""The model card of exported weights.

It tells what they are, how to load them, how they were trained, what they reached, and their
checksums.
"""

import json

import beit_jax
from beit_jax.models.architecture import in_words, segments

_LOAD = {
    'huggingface': """\
from transformers import AutoImageProcessor, {model}
processor = AutoImageProcessor.from_pretrained("{place}")
model = {model}.from_pretrained("{place}")""",
    'timm': """\
import timm
model = timm.create_model("{scheme}:{place}", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))""",
    'unilm': """\
{import_hub}import torch
state = torch.load({file}, weights_only=True)["{wrapper}"]
model.load_state_dict(state)""",
    'stablehlo': """\
import jax.export, numpy
program = jax.export.deserialize(bytearray(open("DIR/{model}.stablehlo", "rb").read()))
weights = dict(numpy.load("DIR/weights.npz"))
program.call(weights, images)  # as preprocessing.json says""",
}
_LIBRARY = {'huggingface': 'transformers', 'timm': 'timm', 'unilm': 'pytorch', 'stablehlo': 'jax'}
# places on the machine that trained it
_PRIVATE = ('path', 'evaluate_path', 'cache_path', 'init', 'encoder')


def model_card(
    dialect: str,
    description: dict,
    metrics: dict,
    checksums: dict[str, str],
    notes: list[str],
    *,
    model: str = '',
    name: str = '',
) -> str:
    """Markdown with the hub's front matter.

    Args:
      description: that of the checkpoint.
      metrics: of its evaluation, by name; {} where there was none.
      checksums: sha256 of the exported files by name.
      notes: what was left out or assumed.
      model: the class of transformers that loads it, or the program of it.
      name: of its repository on the hub; '': it lies in a folder, DIR.
    """
    architecture, config = description['architecture'], description.get('config')
    task, wrapper = 'feature-extraction', 'model'
    if segments(architecture):
        task, wrapper = 'image-segmentation', 'state_dict'
    elif architecture.get('num_classes'):
        task = 'image-classification'
    lines = [
        '---',
        f'library_name: {_LIBRARY[dialect]}',
        f'pipeline_tag: {task}',
        'tags:',
        '- beit',
        '- vision',
        '---',
        '',
        '# BEiT',
        '',
        'A BEiT ([arXiv 2106.08254](https://arxiv.org/abs/2106.08254)), exported by beit_jax '
        f'{beit_jax.__version__}.',
        '',
        *(f'- {line}' for line in in_words(architecture)),
        *(f'- {note}' for note in notes),
        '',
        '## Load',
        '',
        '```python',
        _LOAD[dialect].format(model=model, wrapper=wrapper, **_place(name)),
        '```',
        '',
    ]
    if dialect != 'stablehlo':  # programs and not weights
        lines += [f'or, in JAX, `beit_jax.load("{name or "DIR"}")`.', '']
    if 'source' in description:
        source = description['source']
        lines += [
            '## Origin',
            '',
            f'Converted from weights with names of {source["dialect"]}:',
            '',
            *_table('file', 'sha256', source['files']),
        ]
    if metrics:
        values = {name: f'{value:.6g}' for name, value in metrics.items()}
        lines += ['## Metrics', '', *_table('held-out metric', 'value', values)]
    if config:
        lines += [
            '## Recipe',
            '',
            f'Task `{description["task"]}`, seed {config["seed"]}, batch {config["batch_size"]}, '
            f'{config["total_steps"]} steps. All settings:',
            '',
            '```json',
            json.dumps(_public(config), indent=1),
            '```',
            '',
        ]
    return '\n'.join([*lines, '## Checksums', '', *_table('file', 'sha256', checksums)])


def _place(name: str) -> dict[str, str]:
    """How each library names a repository of the hub, or the folder DIR."""
    of_hub = {
        'scheme': 'hf_hub',
        'import_hub': 'from huggingface_hub import hf_hub_download\n',
        'file': f'hf_hub_download("{name}", "model.pth")',
    }
    of_folder = {'scheme': 'local-dir', 'import_hub': '', 'file': '"DIR/model.pth"'}
    return {'place': name or 'DIR'} | (of_hub if name else of_folder)


def _table(first: str, second: str, rows: dict[str, str]) -> list[str]:
    lines = [f'| `{name}` | {value} |' for name, value in rows.items()]
    return [f'| {first} | {second} |', '|-|-|', *lines, '']


def _public(settings: dict) -> dict:
    return {
        name: _public(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in _PRIVATE
    }
