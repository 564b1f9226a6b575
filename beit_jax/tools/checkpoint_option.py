"""The model that tools are given, or a file of weights, and a layer of it."""

import argparse

from beit_jax.tools import arguments


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, for `arguments.load`."""
    parser.add_argument(
        '--checkpoint',
        required=True,
        type=arguments.path,
        help='a checkpoint, a work directory, a file or folder of PyTorch weights, or OWNER/NAME '
        "on Hugging Face's hub",
    )


def add_layer(parser: argparse.ArgumentParser) -> None:
    """Adds --layer, for `layer`."""
    parser.add_argument(
        '--layer', type=int, help='from 1, or from the last, -1 (three quarters of the way)'
    )


def layer(options: argparse.Namespace, model) -> int:
    """The layer that --layer says, from 1.

    Raises:
      RequestError: there is none.
    """
    default = max(1, round(model.architecture['depth'] * 3 / 4))
    return model.layer(default if options.layer is None else options.layer)
