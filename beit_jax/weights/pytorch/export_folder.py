"""The folder that a PyTorch library loads a model from: tensors, JSON, and a card."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from beit_jax.errors import check
from beit_jax.models.architecture import patch_target
from beit_jax.models.encoder import EncoderConfig
from beit_jax.weights.arrays import write_arrays
from beit_jax.weights.checkpoint import find_checkpoint, is_checkpoint
from beit_jax.weights.hub import repository
from beit_jax.weights.pytorch import export
from beit_jax.weights.pytorch.card import model_card
from beit_jax.weights.pytorch.facts import metadata
from beit_jax.weights.pytorch.files import METADATA
from beit_jax.weights.pytorch.torch_writer import write_torch_file
from beit_jax.weights.standardised import of_plain_numbers
from beit_jax.weights.stored import Stored
from beit_jax.whole_files import metric_lines, sha256, whole_directory


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model in the names of a dialect."""

    dialect: str
    architecture: dict
    tensors: dict[str, np.ndarray]
    notes: list[str]  # what was left out or assumed


def in_dialect(model: Stored, dialect: str) -> Exported:
    """A model as the library of the dialect can have it, without what that does not know.

    Raises:
      RequestError: the library has no such segmenter.
    """
    params, architecture, notes = model.params, model.architecture, list(model.notes)
    target = patch_target(architecture)
    if 'targets' in architecture:
        params, architecture = of_plain_numbers(params, architecture)
        notes.append('mean and deviation of the numbers are multiplied into the head')
    if 'cls_head' in params and dialect != 'unilm':
        params = {name: value for name, value in params.items() if name != 'cls_head'}
        architecture = {name: said for name, said in architecture.items() if name != 'cls_head'}
        notes.append(f'{dialect} has no blocks that pre-train CLS: they are left out')
    if target == 'pixels' or (target and dialect == 'timm'):
        params, architecture = export.headless(params, architecture)
        lacking = 'masked image model' if target == 'tokens' else 'model that predicts pixels'
        notes.append(f'{dialect} has no {lacking}: mask token and {target[:-1]} head are left out')
    rows, columns = (2 * side - 1 for side in architecture['grid'])
    check(
        dialect != 'timm'
        or rows == columns
        or 'bias' not in architecture['positions']
        or math.isqrt(rows * columns) ** 2 != rows * columns,
        f'timm takes position biases of {" x ".join(map(str, architecture["grid"]))} patches for '
        'those of a square: use --format huggingface or unilm.',
    )
    if dialect == 'huggingface' and architecture['channels'] != 3:
        notes.append(
            'image processors of transformers take RGB: preprocessor_config.json says how the '
            f'{architecture["channels"]} channels are normalised, not how files are read'
        )
    # theirs too, which no file can change
    if dialect != 'huggingface' and architecture['norm_eps'] != EncoderConfig.norm_eps:
        notes.append(
            f'its norms ran with eps {architecture["norm_eps"]:g}; {dialect} has '
            f'{EncoderConfig.norm_eps:g}: results differ a little'
        )
    tensors = export.to_tensors(params, architecture, dialect)
    return Exported(dialect, architecture, tensors, notes)


def write_folder(
    path: Path, exported: Exported, model: Stored, metrics: dict, hub_name: str = ''
) -> dict[str, str]:
    """Writes all that the library wants to a new directory.

    Args:
      metrics: what held-out images gave.
      hub_name: of the repository on the hub that it is for; '' where it is for none.

    Returns:
      {name of a file with tensors: its SHA-256}.

    Raises:
      RequestError: there is something at `path` already.
    """
    dialect, architecture, tensors = exported.dialect, exported.architecture, exported.tensors
    classes, files, header = list(model.classes), {}, {'format': 'pt'}
    if dialect == 'huggingface':
        files = {
            'config.json': export.huggingface_config(architecture, classes),
            'preprocessor_config.json': export.huggingface_processor(architecture),
        }
    elif dialect == 'timm':
        files = {'config.json': export.timm_config(architecture, classes)}
    else:  # others have JSON for it
        header[METADATA] = json.dumps(metadata(architecture, model.classes))
    with whole_directory(path) as directory:
        write_arrays(directory / 'model.safetensors', tensors, header)
        if dialect == 'unilm':
            write_torch_file(directory / 'model.pth', tensors)
        checksums = {file.name: sha256(file) for file in sorted(directory.iterdir())}
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (directory / name).write_text(text + '\n')
        card = model_card(
            dialect,
            model.description | {'architecture': architecture},
            metrics,
            checksums,
            exported.notes,
            model=files.get('config.json', {}).get('architectures', [''])[0],
            name=hub_name,
        )
        (directory / 'README.md').write_text(card)
    return checksums


def held_out_metrics(path: str) -> dict[str, float]:
    """What the run of a checkpoint measured on held-out images at its step; {} of anything else."""
    if not path or repository(path) or not is_checkpoint(path):
        return {}
    checkpoint, found = find_checkpoint(path), {}
    rows, _ = metric_lines(checkpoint.parents[1] / 'metrics.jsonl')
    for row in rows:
        held_out = row if str(row['step']) == checkpoint.name else {}
        for name, value in held_out.items():
            if name.startswith('eval/') and value is not None:
                found[name.removeprefix('eval/')] = value
    return found
