"""Small BEiT models in files and folders as PyTorch's libraries write them."""

import json

import torch

SIZES = {'width': 128, 'depth': 2, 'heads': 2, 'hidden': 200, 'side': 80}
PRETRAINED = SIZES | {'positions': 'shared_bias', 'vocabulary': 101}
CLASSIFIER = SIZES | {'positions': 'layer_bias', 'classes': 7}


def save(tensors, path, **beside):
    """As the official code does."""
    torch.save({'model': tensors} | beside, path)
    return path


def copy(folder, directory, **changed):
    """The folder with entries of its config.json changed."""
    config = json.loads((folder / 'config.json').read_text()) | changed
    return copy_with(folder, directory, config)


def copy_with(folder, directory, config):
    """The folder with another config.json."""
    directory.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / 'config.json').write_text(json.dumps(config))
    return directory
